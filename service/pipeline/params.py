"""The parameters of one rewrite request."""

from __future__ import annotations

from typing import NamedTuple

from service.pipeline.single_flight import DisconnectWaiter
from service.resilience.admission import Kind
from service.resilience.deadline import Deadline


class RewriteParams(NamedTuple):
    """The parameters of one request, from the API to the engine."""

    query: str
    """As the client sent it."""
    deadline: Deadline
    max_rewrites: int | None = None
    """Most rewrites in the answer; ``None``: the version's own setting."""
    min_relevance: float | None = None
    """Least relevance of a rewrite; ``None``: the version's own setting."""
    model_version: str | None = None
    """The pinned version; ``None``: the router decides."""
    unit_id: str | None = None
    """The user or session, for experiments."""
    request_id: str = ""
    may_generate: bool = True
    """Whether a cache miss may use the engine."""
    kind: Kind = Kind.SHOPPER
    """Shoppers are before batches, and refused if they would be late."""
    disconnected: DisconnectWaiter | None = None
    """Returns when the client disconnects; ``None``: unknown."""
