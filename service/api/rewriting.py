"""``POST /rewrite`` and ``POST /relevance``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.api.body import DeadlinePolicy, read_json
from service.api.context import RequestContext, context_of
from service.api.routing import DirectRoute
from service.api.schemas import (
    RelevanceRequest,
    RelevanceResponse,
    RewriteRequest,
    RewriteResponse,
    problems,
    request_body,
)
from service.rewriter import Answer, Ask, Rewriter, Source
from service.tagger import Tagger

_CACHE_STATUS: dict[Source, str] = {
    "memory": "requery; hit; detail=memory",
    "redis": "requery; hit; detail=redis",
    "engine": "requery; fwd=miss",
    "coalesced": "requery; fwd=miss; collapsed",
    "none": "requery; fwd=miss",
    "override": "requery; fwd=bypass",
}
"""``Cache-Status`` (RFC 9211) by source."""
_DIGITS = 4
"""Decimals of a relevance on the wire."""


class RewritingApi:
    """The routes of the online path.

    Args:
        rewriter: the pipeline.
        tagger: the tag task.
        rewrite_deadline: for /rewrite.
        tag_deadline: for /relevance, which nobody calls from a search page.
        query_fields: log fields for a query.
    """

    def __init__(
        self,
        *,
        rewriter: Rewriter,
        tagger: Tagger,
        rewrite_deadline: DeadlinePolicy,
        tag_deadline: DeadlinePolicy,
        query_fields: Callable[[str], Mapping[str, str]],
    ) -> None:
        self._rewriter = rewriter
        self._tagger = tagger
        self._rewrite_deadline = rewrite_deadline
        self._tag_deadline = tag_deadline
        self._query_fields = query_fields

    def router(self) -> APIRouter:
        """The routes, with their OpenAPI."""
        router = APIRouter(route_class=DirectRoute)
        for path in ("/rewrite", "/v1/rewrite"):
            router.add_api_route(
                path,
                self.rewrite,
                methods=["POST"],
                summary="Rewrite a shopping query",
                operation_id="rewrite" + ("_v1" if path.startswith("/v1") else ""),
                responses={
                    200: {"model": RewriteResponse},
                    **problems(400, 404, 409, 413, 415, 422),
                },
                openapi_extra=request_body(RewriteRequest),
            )
        router.add_api_route(
            "/relevance",
            self.relevance,
            methods=["POST"],
            summary="Tag the relevance of given rewrites",
            operation_id="relevance",
            responses={
                200: {"model": RelevanceResponse},
                **problems(400, 404, 409, 413, 415, 422, 503, 504),
            },
            openapi_extra=request_body(RelevanceRequest),
        )
        return router

    async def rewrite(self, request: Request) -> Response:
        """Other ways to say the same need, each with its relevance; 200 even when late."""
        context = context_of(request.scope)
        body = await read_json(request, RewriteRequest)
        ask = Ask(
            query=body.query,
            deadline=self._rewrite_deadline.deadline(
                request, body.deadline_ms, started=context.watch.started
            ),
            max_rewrites=body.max_rewrites,
            min_relevance=body.min_relevance,
            model_version=body.model_version,
            unit_id=body.unit_id,
        )
        answer = await self._rewriter.rewrite(ask, context.watch)
        context.fields.update(
            version=answer.version,
            source=answer.source,
            outcome=answer.status,
            rewrites=len(answer.selection.accepted),
            **self._query_fields(answer.query),
        )
        content = _rewrite_content(answer, context, explain=body.explain)
        return _json(content, {"cache-status": _CACHE_STATUS[answer.source]})

    async def relevance(self, request: Request) -> Response:
        """P(relevant) of each pair of query and rewrite, in order."""
        context = context_of(request.scope)
        body = await read_json(request, RelevanceRequest)
        version, relevance = await self._tagger.tag(
            [(pair.query, pair.rewrite) for pair in body.pairs],
            model_version=body.model_version,
            deadline=self._tag_deadline.deadline(
                request, body.deadline_ms, started=context.watch.started
            ),
        )
        context.fields.update(version=version, pairs=len(relevance))
        return _json(
            {
                "relevance": [round(p, _DIGITS) for p in relevance],
                "model_version": version,
                "request_id": context.request_id,
            }
        )


def _rewrite_content(answer: Answer, context: RequestContext, *, explain: bool) -> dict[str, Any]:
    content: dict[str, Any] = {
        "query": answer.query,
        "rewrites": [
            {"text": one.text, "relevance": round(one.relevance or 0.0, _DIGITS)}
            for one in answer.selection.accepted
        ],
        "status": answer.status,
        "source": answer.source,
        "model_version": answer.version,
        "request_id": context.request_id,
    }
    if explain:
        content["rejected"] = [
            {
                "text": one.text,
                "relevance": None if one.relevance is None else round(one.relevance, _DIGITS),
                "reason": one.verdict.value,
            }
            for one in answer.selection.rejected
        ]
        content["stages_ms"] = {
            stage: round(seconds * 1000, 3) for stage, seconds in context.watch.stages.items()
        }
    return content


def _json(content: Mapping[str, Any], headers: Mapping[str, str] | None = None) -> Response:
    return Response(
        orjson.dumps(content),
        headers={"cache-control": "no-store", **(headers or {})},
        media_type="application/json",
    )
