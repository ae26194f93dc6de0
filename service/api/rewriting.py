"""``POST /rewrite``, ``POST /rewrite/batch`` and ``POST /relevance``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import orjson
from fastapi import APIRouter
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response

from service.api import problems as problem_objects
from service.api.body import DeadlinePolicy, read_json
from service.api.direct import DirectRoute
from service.api.disconnect import disconnected, unless_disconnected
from service.api.schemas import (
    DEADLINE,
    BatchQuery,
    BatchRequest,
    BatchResponse,
    RelevanceRequest,
    RelevanceResponse,
    RewriteRequest,
    RewriteResponse,
    parameters,
    problems,
    request_body,
    response_header,
)
from service.errors import FieldError, InvalidRequest
from service.pipeline.answer import Answer, Source
from service.pipeline.batch import Batches, Done, Outcome
from service.pipeline.params import RewriteParams
from service.pipeline.relevance import Tagger
from service.pipeline.rewriter import Rewriter
from service.resilience.admission import Kind
from service.resilience.deadline import Deadline
from service.security.auth import Guard
from service.telemetry.request_context import context_of
from service.telemetry.stopwatch import Stopwatch

_CACHE_STATUS: dict[Source, bytes] = {
    "memory": b"requery; hit; detail=memory",
    "redis": b"requery; hit; detail=redis",
    "engine": b"requery; fwd=miss",
    "coalesced": b"requery; fwd=miss; collapsed",
    "none": b"requery; fwd=miss",
    "override": b"requery; fwd=bypass",
}
"""``Cache-Status`` (RFC 9211) by source."""
_CACHE_HEADER = response_header("Cache-Status", "The source of the answer (RFC 9211).")
_DIGITS = 4
"""Decimals of a relevance on the wire."""


class RewritingApi:
    """The routes that rewrite queries and tag pairs.

    Args:
        rewriter: the pipeline.
        tagger: the tag task.
        rewrite_deadline: for /rewrite.
        tag_deadline: for /relevance and batches, which no search page waits for.
        query_fields: log fields for a query.
        guard: checks the API key.
        batch_concurrency: concurrent queries of all batches.
    """

    def __init__(
        self,
        *,
        rewriter: Rewriter,
        tagger: Tagger,
        rewrite_deadline: DeadlinePolicy,
        tag_deadline: DeadlinePolicy,
        query_fields: Callable[[str], Mapping[str, str]],
        guard: Guard,
        batch_concurrency: int = 8,
    ) -> None:
        self._rewriter = rewriter
        self._batches = Batches(rewriter.rewrite, concurrency=batch_concurrency)
        self._tagger = tagger
        self._rewrite_deadline = rewrite_deadline
        self._tag_deadline = tag_deadline
        self._query_fields = query_fields
        self._guard = guard

    def router(self) -> APIRouter:
        """The routes, with their OpenAPI."""
        router = APIRouter(route_class=DirectRoute, tags=["Rewriting"])
        router.add_api_route(
            "/rewrite",
            self.rewrite,
            methods=["POST"],
            summary="Rewrite a shopping query",
            operation_id="rewrite",
            responses={
                200: {"model": RewriteResponse, "headers": _CACHE_HEADER},
                **problems(400, 401, 403, 404, 409, 413, 415, 422, 503),
            },
            openapi_extra=request_body(RewriteRequest) | parameters(DEADLINE),
        )
        router.add_api_route(
            "/rewrite/batch",
            self.rewrite_batch,
            methods=["POST"],
            summary="Rewrite up to 256 shopping queries",
            operation_id="rewrite_batch",
            responses={
                200: {"model": BatchResponse},
                **problems(400, 401, 403, 413, 415, 422),
            },
            openapi_extra=request_body(BatchRequest) | parameters(DEADLINE),
        )
        router.add_api_route(
            "/relevance",
            self.relevance,
            methods=["POST"],
            summary="Tag the relevance of given rewrites",
            operation_id="relevance",
            responses={
                200: {"model": RelevanceResponse},
                **problems(400, 401, 403, 404, 409, 413, 415, 422, 503, 504),
            },
            openapi_extra=request_body(RelevanceRequest) | parameters(DEADLINE),
        )
        return router

    async def rewrite(self, request: Request) -> Response:
        """Rewrites of the query with their relevance; 200 even after the deadline."""
        self._guard.check(request)
        context = context_of(request.scope)
        body = await read_json(request, RewriteRequest)
        params = RewriteParams(
            query=body.query,
            deadline=self._rewrite_deadline.deadline(
                request, body.deadline_ms, started=context.watch.started
            ),
            max_rewrites=body.max_rewrites,
            min_relevance=body.min_relevance,
            model_version=body.model_version,
            unit_id=body.unit_id,
            request_id=context.request_id,
            disconnected=partial(disconnected, request),
        )
        answer = await self._rewriter.rewrite(params, context.watch)
        context.fields.update(
            version=answer.version,
            source=answer.source,
            outcome=answer.status,
            rewrites=len(answer.selection.accepted),
            **self._query_fields(answer.query),
        )
        content = _rewrite_content(answer, context.watch, context.request_id, explain=body.explain)
        return _json(content, (b"cache-status", _CACHE_STATUS[answer.source]))

    async def rewrite_batch(self, request: Request) -> Response:
        """An answer to each query, in order, by one deadline; 200 even after it."""
        self._guard.check(request)
        context = context_of(request.scope)
        body = await read_json(request, BatchRequest)
        deadline = self._tag_deadline.deadline(
            request, body.deadline_ms, started=context.watch.started
        )
        outcomes: dict[int, Outcome] = {}
        valid: dict[int, RewriteParams] = {}
        for i, item in enumerate(body.queries):
            try:
                valid[i] = _batch_params(item, body, deadline, f"{context.request_id}.{i}")
            except InvalidRequest as error:
                outcomes[i] = error
        context.watch.lap("prepare")
        answered = await unless_disconnected(request, self._batches.answer([*valid.values()]))
        outcomes |= zip(valid, answered, strict=True)
        context.watch.lap("batch")
        answers = [
            _batch_content(i, outcomes[i], context.request_id, explain=body.explain)
            for i in range(len(body.queries))
        ]
        context.fields.update(
            queries=len(answers),
            outcomes=dict(Counter("problem" if "index" in a else a["status"] for a in answers)),
            sources=dict(Counter(a["source"] for a in answers if "source" in a)),
        )
        return _json({"answers": answers, "request_id": context.request_id})

    async def relevance(self, request: Request) -> Response:
        """P(relevant) of each pair of query and rewrite, in order."""
        self._guard.check(request)
        context = context_of(request.scope)
        body = await read_json(request, RelevanceRequest)
        deadline = self._tag_deadline.deadline(
            request, body.deadline_ms, started=context.watch.started
        )
        pairs = [(pair.query, pair.rewrite) for pair in body.pairs]
        version, relevance = await unless_disconnected(
            request, self._tagger.tag(pairs, model_version=body.model_version, deadline=deadline)
        )
        context.fields.update(version=version, pairs=len(relevance))
        return _json(
            {
                "relevance": [round(p, _DIGITS) for p in relevance],
                "model_version": version,
                "request_id": context.request_id,
            }
        )


def _batch_params(
    item: object, shared: BatchRequest, deadline: Deadline, request_id: str
) -> RewriteParams:
    """The parameters of one query of a batch.

    Args:
        item: a text, or an object with the fields of :class:`BatchQuery`.
        shared: the batch.
        deadline: of the batch.
        request_id: of this query, for its exposure.

    Raises:
        InvalidRequest: the item is neither.
    """
    if isinstance(item, str):
        item = {"query": item}
    elif not isinstance(item, dict):
        raise InvalidRequest([FieldError("query", "must be text, or an object with this field")])
    try:
        query = BatchQuery.model_validate(item)
    except ValidationError as error:
        raise problem_objects.from_validation(error) from None
    return RewriteParams(
        query=query.query,
        deadline=deadline,
        max_rewrites=shared.max_rewrites,
        min_relevance=shared.min_relevance,
        model_version=query.model_version or shared.model_version,
        unit_id=query.unit_id,
        request_id=request_id,
        kind=Kind.BATCH,
    )


def _batch_content(
    index: int, outcome: Outcome, request_id: str, *, explain: bool
) -> dict[str, Any]:
    """One item of the response to a batch."""
    if isinstance(outcome, Done):
        return _rewrite_content(outcome.answer, outcome.watch, request_id, explain=explain)
    return {**problem_objects.content(outcome, request_id), "index": index}


def _rewrite_content(
    answer: Answer, watch: Stopwatch, request_id: str, *, explain: bool
) -> dict[str, Any]:
    accepted, rejected = answer.selection
    content: dict[str, Any] = {
        "query": answer.query,
        "rewrites": [
            {"text": one.text, "relevance": round(one.relevance or 0.0, _DIGITS)}
            for one in accepted
        ],
        "status": answer.status,
        "source": answer.source,
        "model_version": answer.version,
        "request_id": request_id,
    }
    if explain:
        content["rejected"] = [
            {
                "text": one.text,
                "relevance": None if one.relevance is None else round(one.relevance, _DIGITS),
                "reason": one.verdict.value,
            }
            for one in rejected
        ]
        for shown, judged in ((content["rewrites"], accepted), (content["rejected"], rejected)):
            for item, one in zip(shown, judged, strict=True):
                if one.votes > 1:
                    item["votes"] = one.votes
        content["stages_ms"] = {
            stage: round(seconds * 1000, 3) for stage, seconds in watch.stages.items()
        }
    return content


class _Json(Response):
    """A JSON response whose headers are bytes from the start.

    Args:
        body: the JSON.
        headers: in addition to those of every response.
    """

    def __init__(self, body: bytes, *headers: tuple[bytes, bytes]) -> None:
        self.status_code = 200
        self.background = None
        self.body = body
        self.raw_headers = [
            (b"cache-control", b"no-store"),
            *headers,
            (b"content-length", b"%d" % len(body)),
            (b"content-type", b"application/json"),
        ]


def _json(content: Mapping[str, Any], *headers: tuple[bytes, bytes]) -> Response:
    return _Json(orjson.dumps(content), *headers)
