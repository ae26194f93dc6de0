"""The states of a model version, and which may follow which."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum


class State(StrEnum):
    """Where a version is in its life cycle."""

    AVAILABLE = "available"
    """In the store, not loaded."""
    LOADING = "loading"
    """Queued for loading, or being materialised and started."""
    WARMING = "warming"
    """Answering warm-up queries."""
    READY = "ready"
    DRAINING = "draining"
    """No longer routed to; its engine stops once nothing is in flight."""
    FAILED = "failed"
    """Could not be loaded; :attr:`ModelVersion.reason` says why."""

    def require_next(self, after: State) -> None:
        """Check that ``after`` may follow this state.

        Raises:
            ForbiddenTransition: it may not.
        """
        if after not in _ALLOWED[self]:
            raise ForbiddenTransition(f"a version that is {self} cannot become {after}")


class ForbiddenTransition(RuntimeError):
    """A state was to follow one that it cannot follow: an error of this program."""


_ALLOWED: Mapping[State, frozenset[State]] = {
    # To failed: it does not fit the memory, so no load began.
    State.AVAILABLE: frozenset({State.LOADING, State.FAILED}),
    State.LOADING: frozenset({State.WARMING, State.DRAINING, State.FAILED, State.AVAILABLE}),
    State.WARMING: frozenset({State.READY, State.DRAINING, State.FAILED, State.AVAILABLE}),
    # To loading: its engine is replaced. To available: the process ends and nothing is drained.
    State.READY: frozenset({State.LOADING, State.DRAINING, State.AVAILABLE}),
    State.DRAINING: frozenset({State.AVAILABLE}),
    # To failed: it failed again, perhaps for another reason.
    State.FAILED: frozenset({State.LOADING, State.FAILED, State.AVAILABLE}),
}
