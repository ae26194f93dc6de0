"""The parameters of one rewrite request."""

from __future__ import annotations

from dataclasses import dataclass

from service.pipeline.single_flight import DisconnectWaiter
from service.resilience.admission import Kind
from service.resilience.deadline import Deadline


@dataclass(frozen=True, slots=True)
class RewriteParams:
    """The parameters of one request, from the API to the engine.

    Attributes:
        query: as the client sent it.
        deadline: when the answer is due.
        max_rewrites: most rewrites in the answer; ``None``: the version's own setting.
        min_relevance: least relevance of a rewrite; ``None``: the version's own setting.
        model_version: the version to use; ``None``: the router decides.
        unit_id: the user or session, for experiments.
        request_id: for logs and exposures.
        may_generate: whether a cache miss may use the engine.
        kind: shoppers are rejected when the engine is full; batches wait for capacity.
        disconnected: returns when the client disconnects; ``None``: unknown.
    """

    query: str
    deadline: Deadline
    max_rewrites: int | None = None
    min_relevance: float | None = None
    model_version: str | None = None
    unit_id: str | None = None
    request_id: str = ""
    may_generate: bool = True
    kind: Kind = Kind.SHOPPER
    disconnected: DisconnectWaiter | None = None
