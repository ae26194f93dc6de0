"""Requests and answers on the wire.

Requests are validated by these models. Answers are built directly (validating our own output on
every request would cost more than the rest of the edge); the answer models document them, and the
contract tests hold the two together.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    StringConstraints,
    WithJsonSchema,
)

from service.overrides.entries import BlockQuery, BlockTerm, Kind, Pin, Source
from service.routing import Kill, RoutingPlan, ShadowTraffic

MAX_RAW_CHARS = 4096
"""Longest text taken before normalising, so that normalising stays cheap."""
MAX_PAIRS = 256
"""Most pairs in one call of /relevance."""
MAX_BATCH = 256
"""Most queries in one call of /rewrite/batch."""
MAX_DEADLINE_MS = 600_000

Text = Annotated[str, StringConstraints(max_length=MAX_RAW_CHARS)]
Milliseconds = Annotated[int, Field(ge=1, le=MAX_DEADLINE_MS)]
VersionPin = Annotated[str, StringConstraints(max_length=64)]
UnitId = Annotated[
    str,
    StringConstraints(max_length=256),
    Field(description="Who is asking (user or session), for experiments."),
]
MaxRewrites = Annotated[
    int, Field(ge=1, le=32, description="Most rewrites wanted; default: the version's.")
]
MinRelevance = Annotated[
    float, Field(ge=0, le=1, description="Least relevance; default: the version's.")
]


class _Request(BaseModel):
    # Strict: "3" is not 3. A caller's mistake should show at once, not on the odd value.
    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class RewriteRequest(_Request):
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


class Pair(_Request):
    """A query and a rewrite to judge."""

    query: Text
    rewrite: Text


class RelevanceRequest(_Request):
    """Body of ``POST /relevance``."""

    pairs: Annotated[list[Pair], Field(min_length=1, max_length=MAX_PAIRS)]
    model_version: VersionPin | None = None
    deadline_ms: Milliseconds | None = None


class BatchQuery(_Request):
    """One query of a batch, with what it does not share with the others."""

    query: Text
    unit_id: UnitId | None = None
    model_version: VersionPin | None = None


class BatchRequest(_Request):
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


class AnyObject(RootModel[dict[str, Any]]):
    """A body that is looked at more closely later."""


class NewOverride(RootModel[Annotated[BlockQuery | BlockTerm | Pin, Field(discriminator="kind")]]):
    """Body of ``POST /overrides`` and ``PUT /overrides/{id}``."""


class OverridesRequest(_Request):
    """Body of ``PUT /overrides``."""

    overrides: Annotated[
        list[Any],
        WithJsonSchema({"type": "array", "items": {"$ref": "#/components/schemas/NewOverride"}}),
    ]
    reason: Annotated[
        Annotated[str, StringConstraints(max_length=500)] | None,
        Field(description="Why, for the audit trail."),
    ] = None


class Rewrite(BaseModel):
    """One accepted rewrite."""

    text: str
    relevance: float = Field(
        ge=0,
        le=1,
        description="P(it means what the shopper meant); 1 if a person has pinned it.",
    )


class Rejected(BaseModel):
    """A candidate that was not taken."""

    text: str
    relevance: float | None
    reason: str


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


class BatchAnswer(RewriteResponse):
    """The answer to one query of a batch."""

    model_version: str | None = Field(  # type: ignore[assignment] # one more than for /rewrite
        description="`null` if the deadline passed before the query's turn came (`timeout`)."
    )


class RelevanceResponse(BaseModel):
    """Answer of ``POST /relevance``."""

    relevance: list[float] = Field(description="One for each pair, in order.")
    model_version: str
    request_id: str


class OverrideInfo(BaseModel):
    """One override in force."""

    id: str
    kind: Kind
    query: str | None = Field(default=None, description="Of `block_query` and `pin`.")
    term: str | None = Field(default=None, description="Of `block_term`.")
    rewrites: list[str] | None = Field(default=None, description="Of `pin`.")
    author: str
    reason: str
    created_at: str | None = Field(description="`null` if the file does not say.")
    expires_at: str | None
    source: Source = Field(description="`file` if it is in the file and cannot be changed here.")
    hits: int = Field(description="Since this process started, in this process.")


class OverridesResponse(BaseModel):
    """Answer of ``GET /overrides``."""

    overrides: list[OverrideInfo]
    revision: int = Field(description="Of those with `source: api`, as stored; also the ETag.")
    persistence: Literal["redis", "process"] = Field(
        description="Of those with `source: api`: seen by all replicas and kept, or of this "
        "process alone."
    )
    file_problem: str | None = Field(
        description="Why the overrides file was not taken as it is now; its last good state is in "
        "force."
    )


class LatencyInfo(BaseModel):
    """Percentiles over the last answers of a version in this process."""

    p50: float
    p95: float


class VersionInfo(BaseModel):
    """One known version, as it is in this process."""

    name: str
    description: str
    digest: str
    state: Literal["available", "loading", "warming", "ready", "draining", "failed"]
    reason: str | None = Field(description="Why it failed, if it did.")
    default: bool = Field(description="Whether it serves requests that name no version.")
    wanted: bool = Field(
        description="Whether this replica should have it loaded: it is the default, the routing "
        "document uses it, or somebody loaded it."
    )
    weight: float = Field(
        description="Its share of the requests with a unit_id, in the routing document."
    )
    requests: int = Field(description="Answered since this process started.")
    in_flight: int = Field(description="Requests and generations under way.")
    latency_ms: LatencyInfo | None = Field(description="`null` if it has answered none yet.")
    memory_bytes: int = Field(description="What its engine takes, or would take: an estimate.")


class MemoryInfo(BaseModel):
    """Memory of all engines of this process."""

    limit_bytes: int | None = Field(description="`null` if it is not known.")
    reserved_bytes: int = Field(description="Of the engines there are: an estimate.")


class VersionsResponse(BaseModel):
    """Answer of ``GET /versions``."""

    default: str
    durable: bool = Field(
        description="Whether loading and unloading is followed by all replicas, and survives a "
        "restart."
    )
    memory: MemoryInfo
    versions: list[VersionInfo]


class RoutingResponse(BaseModel):
    """Answer of ``GET /routing`` and of what changes it."""

    default: str
    weights: dict[str, float]
    salt: str
    shadow: ShadowTraffic | None
    kill: Kill | None = Field(description="The emergency switch; goes before all else.")
    revision: int = Field(
        description="Of what is in force here; 0 if it was never written. The ETag is the "
        "revision that is stored, the same unless that could not be taken here."
    )
    persistence: Literal["redis", "process"] = Field(
        description="`redis`: seen by all replicas and kept; `process`: of this process alone, "
        "and lost when it ends."
    )


class AuditEntry(BaseModel):
    """One change of a control document."""

    time: str = Field(description="ISO 8601, UTC.")
    document: str
    action: str
    author: str
    reason: str | None
    revision: int = Field(description="After the change.")
    replaced: int = Field(description="The revision before; 0 if there was none.")
    before: dict[str, Any] = Field(description="What it changed, as it was.")
    after: dict[str, Any] = Field(description="What it changed, as it is since.")


class AuditResponse(BaseModel):
    """Answer of ``GET /audit``."""

    entries: list[AuditEntry] = Field(description="Newest first.")
    persistence: Literal["redis", "process"]


class PurgeRequest(_Request):
    """Body of ``POST /cache/purge``; at least one of the two."""

    query: Annotated[
        Text | None, Field(description="What to forget answers of; default: every query.")
    ] = None
    model_version: Annotated[
        VersionPin | None, Field(description="Whose answers to forget; default: every version's.")
    ] = None


class PurgeResponse(BaseModel):
    """Answer of ``POST /cache/purge``."""

    memory: int = Field(description="Entries that went from the memory of this replica.")
    redis: int = Field(description="Entries that went from Redis.")
    replicas: Literal["all", "this one"] = Field(
        description="Whose memory is purged; others follow within a second."
    )


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

    answers: list[BatchAnswer | BatchProblem] = Field(
        description="One for each query, in order; a problem has the member `type`."
    )
    request_id: str


BODIES: tuple[type[BaseModel], ...] = (
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
"""Bodies that routes read by themselves, and problems: FastAPI does not see them."""


def request_body(model: type[BaseModel]) -> dict[str, Any]:
    """OpenAPI for a body that the route reads by itself."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def problems(*codes: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI for the errors of a route."""
    schema = {"$ref": f"#/components/schemas/{Problem.__name__}"}
    content = {"application/problem+json": {"schema": schema}}
    return {code: {"description": "Problem", "content": content} for code in codes}
