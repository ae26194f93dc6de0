"""Schemas of requests and responses.

Requests are validated by these models. Responses are built directly, because validating them would
cost more than the rest of the API; their models document them, and contract tests compare the two.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    WithJsonSchema,
)

from service.pipeline.batch import MAX_BATCH

MAX_RAW_CHARS = 4096
"""Longest text before normalising, to bound its cost."""
MAX_PAIRS = 256
"""Most pairs in one call of /relevance."""
MAX_DEADLINE_MS = 600_000


def _whole(value: object) -> object:
    """``150.0`` is the integer 150, in JSON as in JSON Schema; some languages write it so."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Text = Annotated[str, StringConstraints(max_length=MAX_RAW_CHARS)]
Milliseconds = Annotated[int, Field(ge=1, le=MAX_DEADLINE_MS), BeforeValidator(_whole)]
VersionPin = Annotated[str, StringConstraints(max_length=64)]
UnitId = Annotated[
    str,
    StringConstraints(max_length=256),
    Field(description="Who is asking (user or session), for experiments."),
]
MaxRewrites = Annotated[
    int,
    Field(ge=1, le=32, description="Most rewrites wanted; default: the version's."),
    BeforeValidator(_whole),
]
MinRelevance = Annotated[
    float, Field(ge=0, le=1, description="Least relevance; default: the version's.")
]


class Body(BaseModel):
    """Base of request bodies."""

    # Strict: "3" is not 3, so that a client's mistake shows at once.
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class RewriteRequest(Body):
    """Body of ``POST /rewrite``."""

    query: Annotated[
        Text,
        Field(
            description="What the shopper typed; 1 to 256 characters once normalised.",
            examples=["steele stake"],
        ),
    ]
    max_rewrites: MaxRewrites | None = None
    min_relevance: MinRelevance | None = None
    deadline_ms: Annotated[
        Milliseconds | None,
        Field(
            description="Time to answer in, from when the request arrived; capped by the server."
        ),
    ] = None
    model_version: Annotated[
        VersionPin | None, Field(description="Version to use; default: the server's.")
    ] = None
    unit_id: UnitId | None = None
    explain: Annotated[
        bool, Field(description="Add rejected candidates, their reasons and stage times.")
    ] = False


class Pair(Body):
    """A query and a rewrite to judge."""

    query: Text
    rewrite: Text


class RelevanceRequest(Body):
    """Body of ``POST /relevance``."""

    pairs: Annotated[list[Pair], Field(min_length=1, max_length=MAX_PAIRS)]
    model_version: VersionPin | None = None
    deadline_ms: Milliseconds | None = None


class BatchQuery(Body):
    """One query of a batch, with what it does not share with the others."""

    query: Text
    unit_id: UnitId | None = None
    model_version: VersionPin | None = None


class BatchRequest(Body):
    """Body of ``POST /rewrite/batch``."""

    queries: Annotated[
        list[Any],
        Field(
            min_length=1,
            max_length=MAX_BATCH,
            description="Texts, or objects where a query needs a unit_id or a version of its own. "
            "One that is invalid gets a problem in its place; the others are answered.",
        ),
        WithJsonSchema(
            {
                "type": "array",
                "minItems": 1,
                "maxItems": MAX_BATCH,
                "items": {
                    "anyOf": [
                        {"type": "string", "maxLength": MAX_RAW_CHARS},
                        {"$ref": "#/components/schemas/BatchQuery"},
                    ]
                },
            }
        ),
    ]
    max_rewrites: MaxRewrites | None = None
    min_relevance: MinRelevance | None = None
    deadline_ms: Annotated[
        Milliseconds | None,
        Field(description="For the whole batch; default and most: the server's longest."),
    ] = None
    model_version: VersionPin | None = None
    explain: bool = False


Votes = Annotated[
    int | None,
    Field(
        ge=2,
        description="Only with `explain`: candidates that it counts for, if several; a spelling "
        "correction counts for four, and for each time that the model repeats it.",
    ),
]


class Rewrite(BaseModel):
    """One accepted rewrite."""

    text: str
    relevance: float = Field(
        ge=0,
        le=1,
        description="P(it means what the shopper meant); 1 if it is pinned.",
    )
    votes: Votes = None


class Rejected(BaseModel):
    """A rejected candidate."""

    text: str
    relevance: float | None
    reason: str
    votes: Votes = None


class RewriteResponse(BaseModel):
    """Answer of ``POST /rewrite``."""

    query: str = Field(description="The query in the version's normal form.")
    rewrites: list[Rewrite] = Field(
        description="By falling relevance; pinned ones in the order of the pin."
    )
    status: Literal["ok", "partial", "timeout", "none", "fallback"]
    source: Literal["engine", "memory", "redis", "coalesced", "override", "none"]
    model_version: str
    request_id: str
    rejected: list[Rejected] | None = Field(default=None, description="Only with `explain`.")
    stages_ms: dict[str, float] | None = Field(default=None, description="Only with `explain`.")


class RelevanceResponse(BaseModel):
    """Answer of ``POST /relevance``."""

    relevance: list[float] = Field(description="One for each pair, in order.")
    model_version: str
    request_id: str


class ProblemError(BaseModel):
    """What is wrong with one field."""

    field: str
    detail: str


class Problem(BaseModel):
    """An error, as RFC 9457 has it."""

    type: str = Field(description="Stable name of the kind of error.")
    title: str
    status: int
    detail: str = Field(description="What is wrong this time, and what to do.")
    request_id: str | None = None
    errors: list[ProblemError] | None = Field(default=None, description="Fields, with a 422.")


class BatchProblem(Problem):
    """Why one query of a batch has no answer."""

    index: int = Field(description="Its place in `queries`, from 0.")


class BatchResponse(BaseModel):
    """Answer of ``POST /rewrite/batch``."""

    answers: list[RewriteResponse | BatchProblem] = Field(
        description="One for each query, in order; a problem has the member `type`."
    )
    request_id: str


def request_body(model: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI for a body that the route reads directly."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def parameter(
    place: Literal["path", "query", "header"],
    name: str,
    description: str,
    *,
    required: bool = False,
    **schema: Any,
) -> dict[str, Any]:
    """OpenAPI for a parameter that the route reads directly; a string by default."""
    return {
        "name": name,
        "in": place,
        "required": required or place == "path",
        "description": description,
        "schema": {"type": "string", **schema},
    }


def parameters(*described: dict[str, Any]) -> dict[str, Any]:
    """OpenAPI for parameters made by :func:`parameter`."""
    return {"parameters": list(described)}


def response_header(name: str, description: str, **schema: Any) -> dict[str, Any]:
    """OpenAPI for a header that a response always has."""
    described = {"description": description, "required": True}
    return {name: {**described, "schema": {"type": "string", **schema}}}


_TAG_PATTERN = '"[0-9]{1,18}"'
IF_MATCH = parameter(
    "header",
    "If-Match",
    "The ETag that the change was made from: if somebody has changed it since, the answer is 412.",
    pattern=f"^({_TAG_PATTERN}|[*])$",
)
IF_MATCH_REQUIRED = {
    **IF_MATCH,
    "required": True,
    "description": "The ETag that the change was made from, or `*` to replace whatever there is.",
}
ETAG = response_header("ETag", "The revision, for `If-Match`.", pattern=f"^{_TAG_PATTERN}$")
AUTHOR = parameter("header", "X-Requery-Author", "Who changes it, for the audit trail.")
DEADLINE = parameter(
    "header",
    "X-Request-Deadline-Ms",
    "As `deadline_ms`; of the two the earlier counts. 0 or less: it has passed.",
    type="integer",
    minimum=-999_999_999_999,
    maximum=999_999_999_999,
)


def problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI for the errors of a route."""
    schema = {"$ref": f"#/components/schemas/{Problem.__name__}"}
    content = {"application/problem+json": {"schema": schema}}
    return {code: {"description": "Problem", "content": content} for code in codes}
