"""Schemas of the operators' routes: versions, routing, overrides, purges.

As in :mod:`service.api.schemas`, responses are built directly; these models document them.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    Field,
    RootModel,
    StringConstraints,
    WithJsonSchema,
)

from service.api.schemas import Body, Text, VersionPin
from service.overrides.entries import BlockQuery, BlockTerm, Kind, Pin, Source
from service.overrides.table import MAX_ENTRIES
from service.routing.document import Kill, ShadowTraffic


class Liveness(BaseModel):
    """Answer of ``GET /livez``."""

    status: Literal["live"]


class Readiness(BaseModel):
    """Answer of ``GET /readyz``, if it is ready."""

    status: Literal["ready"]
    model_version: str


class AnyObject(RootModel[dict[str, Any]]):
    """Any JSON object."""


class NewOverride(RootModel[Annotated[BlockQuery | BlockTerm | Pin, Field(discriminator="kind")]]):
    """Body of ``POST /overrides`` and ``PUT /overrides/{id}``."""


class OverridesRequest(Body):
    """Body of ``PUT /overrides``."""

    overrides: Annotated[
        list[Any],
        WithJsonSchema(
            {
                "type": "array",
                "maxItems": MAX_ENTRIES,
                "items": {"$ref": "#/components/schemas/NewOverride"},
            }
        ),
    ]
    reason: Annotated[
        Annotated[str, StringConstraints(max_length=500)] | None,
        Field(description="Why, for the audit trail."),
    ] = None


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
    total: int = Field(description="Overrides in force, on all pages.")
    next_offset: int | None = Field(description="`offset` of the next page, if there is more.")
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


class CatalogueInfo(BaseModel):
    """The catalogue that a version looks rewrites up in."""

    products: int
    made_at: datetime = Field(description="When it was taken from the shop.")


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
    catalogue: CatalogueInfo | None = Field(
        description="What its rewrites are looked up in: `no_results` and `no_gain` come from it."
    )
    memory_bytes: int = Field(description="What its engine takes, or would take: an estimate.")
    matrices: Literal["bfloat16", "float32", "float16", "int8"] | None = Field(
        description="How the CPU multiplies its matrices; `null` on a GPU and without an engine."
    )


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
    kill: Kill | None = Field(
        description="The emergency switch of all replicas; goes before all else but `local_kill`."
    )
    local_kill: Kill | None = Field(
        description="The emergency switch of this replica alone; goes before all else. It is no "
        "part of the document, and ends with the process."
    )
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
    replica: str | None = Field(
        default=None, description="The host whose replica alone was changed; absent if all were."
    )


class AuditResponse(BaseModel):
    """Answer of ``GET /audit``."""

    entries: list[AuditEntry] = Field(description="Newest first.")
    next_offset: int | None = Field(description="`offset` of the next page, if there is more.")
    persistence: Literal["redis", "process"]


class PurgeRequest(Body):
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
