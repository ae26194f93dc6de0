"""The interface of engines."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Candidate:
    """One finished generation.

    Attributes:
        text: the rewrite, decoded and stripped, not yet normalised or filtered.
        token_ids: ids of the rewrite without its tag.
        relevance: P(RELEVANT) / (P(RELEVANT) + P(IRRELEVANT)) at the stop position, raw (before
            temperature), in [0, 1]; ``None`` if the generation ran out of tokens before a tag.
        votes: candidates that it counts for.
    """

    text: str
    token_ids: tuple[int, ...]
    relevance: float | None
    votes: int = 1


class Engine(Protocol):
    """One loaded model version.

    Text arguments are in the version's normal form. There are no deadlines: cancel the call (or
    close the iterator) and the engine drops the work.
    """

    @property
    def healthy(self) -> bool:
        """Whether the engine can answer."""

    @property
    def outstanding(self) -> int:
        """Engine requests that are neither answered nor cancelled."""

    @property
    def progress(self) -> int:
        """Grows with the work done: each step of a batch, or each request."""

    @property
    def effort(self) -> float:
        """Seconds of CPU time that the engine has used; constant while it is stopped."""

    @property
    def matrices(self) -> str | None:
        """How a CPU multiplies the model's matrices; ``None`` elsewhere, and before the start."""

    async def start(self) -> None:
        """Load and warm up; returns when the first real query would be fast.

        Raises:
            EngineUnavailable: the weights or the device cannot be used.
        """

    def generate(self, query: str) -> AsyncIterator[Candidate]:
        """Yield the version's candidates for ``query``, each as soon as it has finished.

        All candidates are put into one batch; duplicates are not removed. Closing the iterator
        aborts those still running.

        Raises:
            EngineUnavailable: while iterating, if the engine died.
            QueryTooLong: the query has more tokens than the engine was started for.
        """

    async def tag(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Relevance in [0, 1] of each ``(query, rewrite)``, in order, by the tag task.

        Raises:
            EngineUnavailable: if the engine died.
            QueryTooLong: a pair has more tokens than the engine was started for.
        """

    async def close(self) -> None:
        """Stop the engine, hanging or not, and free its memory; idempotent.

        Calls that are under way end at once with ``EngineUnavailable``.
        """
