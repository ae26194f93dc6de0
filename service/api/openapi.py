"""The OpenAPI document, with the bodies that routes read directly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from service.api.examples import EXAMPLES, problems_of
from service.api.limits import EXEMPT
from service.api.operator_schemas import NewOverride, OverridesRequest, PurgeRequest
from service.api.schemas import (
    ETAG,
    BatchQuery,
    BatchRequest,
    Problem,
    RelevanceRequest,
    RewriteRequest,
    problems,
    response_header,
)
from service.routing.document import Kill, RoutingPlan

_BODIES: tuple[type[BaseModel], ...] = (
    RewriteRequest,
    BatchRequest,
    BatchQuery,
    RelevanceRequest,
    NewOverride,
    OverridesRequest,
    RoutingPlan,
    Kill,
    PurgeRequest,
    Problem,
)
"""Bodies that routes read directly, and problems: FastAPI does not see them."""


_SERVERS = [
    {"url": "/", "description": "Short names: the newest version of the interface."},
    {"url": "/v1", "description": "The same operations in version 1 of the interface."},
]
_TAGS = {
    "Rewriting": "For search backends.",
    "Versions": "Model versions: their states, load and unload.",
    "Routing": "Experiments, kill switches and the audit trail.",
    "Overrides": "Manual decisions of the relevance team.",
    "Cache": "Forget cached answers.",
    "Operations": "Health checks and metrics, for machines.",
}
_SCHEME = "key"
_OPEN = frozenset({"/livez", "/readyz"})


def document(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """A function that builds the document once; it replaces ``app.openapi``."""

    def build() -> dict[str, Any]:
        if app.openapi_schema is None:
            _, definitions = models_json_schema(
                [(model, "validation") for model in _BODIES],
                ref_template="#/components/schemas/{model}",
            )
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
            )
            schema["servers"] = _SERVERS
            schema["tags"] = [{"name": name, "description": is_} for name, is_ in _TAGS.items()]
            schemas = schema.setdefault("components", {}).setdefault("schemas", {})
            schemas.update(definitions["$defs"])
            _describe_keys(schema)
            _describe_headers(schema)
            _add_examples(schema)
            app.openapi_schema = schema
        return app.openapi_schema

    return build


def _describe_keys(schema: dict[str, Any]) -> None:
    """Document the API key, the 429 and the 422 of all routes except health checks."""
    scheme = {"type": "http", "scheme": "bearer", "description": "Needed once keys are configured."}
    schema["components"]["securitySchemes"] = {_SCHEME: scheme}
    for path, operations in schema["paths"].items():
        if path in _OPEN:
            continue
        for operation in operations.values():
            operation["security"] = [{_SCHEME: []}, {}]
            codes = (429,) if path in EXEMPT else (422, 429)
            operation["responses"].update({str(k): v for k, v in problems(*codes).items()})


_EVERY_ANSWER = {
    **response_header("X-Request-ID", "The caller's if it sent a sane one, else one made here."),
    **response_header("Server-Timing", "Milliseconds by stage, and in total."),
}
_RETRY = response_header("Retry-After", "Seconds.", type="integer", minimum=1)
_BY_CODE = {
    "401": response_header("WWW-Authenticate", "How a key is sent."),
    "412": ETAG,
    "429": _RETRY,
    "503": _RETRY,
}


def _describe_headers(schema: dict[str, Any]) -> None:
    """Document the headers of all responses and of some status codes."""
    for operations in schema["paths"].values():
        for operation in operations.values():
            for code, response in operation["responses"].items():
                described = response.setdefault("headers", {})
                described.update(_EVERY_ANSWER | _BY_CODE.get(code, {}))


def _add_examples(schema: dict[str, Any]) -> None:
    """Give each body an example, and each error an example of each problem that it can be."""
    for operations in schema["paths"].values():
        for operation in operations.values():
            bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
            for media in (one["content"] for one in bodies if "content" in one):
                if found := media.get("application/json"):
                    found["example"] = EXAMPLES[found["schema"]["$ref"].rpartition("/")[2]]
            (tag,) = operation["tags"]
            for code, response in operation["responses"].items():
                if found := response.get("content", {}).get("application/problem+json"):
                    examples = problems_of(int(code), tag)
                    # The content is shared by the responses of all routes.
                    response["content"] = {
                        "application/problem+json": found | {"examples": examples}
                    }
                    response["description"] = ", ".join(f"`{name}`" for name in examples)
