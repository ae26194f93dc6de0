"""A run: many queries at a time, recorded in the journal batch by batch, stopped without loss."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from service.precompute.errors import PrecomputeError
from service.precompute.journal import Journal, Result
from service.precompute.plan import Plan

_HOPELESS = 64
"""A run ends after so many failures in a row."""


class Outcome(NamedTuple):
    """The result of one query, and the reason of a failure."""

    result: Result
    reason: str = ""


class Filler(Protocol):
    """Puts answers into the cache."""

    @property
    def size(self) -> int:
        """Queries of one call."""

    @property
    def concurrency(self) -> int:
        """Calls under way at a time."""

    async def fill(self, queries: Sequence[str]) -> Sequence[Outcome]:
        """One outcome for each query, in order.

        Raises:
            PrecomputeError: the run must end.
        """


class Pace:
    """Keeps to a number of queries a second, however long each takes.

    Args:
        per_second: queries; ``None`` for no limit.
        clock: monotonic seconds.
    """

    def __init__(
        self, per_second: float | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._interval = 0.0 if per_second is None else 1.0 / per_second
        self._clock = clock
        self._free_at = 0.0

    def take(self, n: int) -> float:
        """Seconds to wait before the next ``n`` queries."""
        now = self._clock()
        begin = max(now, self._free_at)
        self._free_at = begin + n * self._interval
        return begin - now


@dataclass(slots=True)
class Tally:
    """The results of a run so far.

    Attributes:
        places: places in the plan by result, without those of earlier runs.
        reasons: why a query failed, by place.
        before: results of earlier runs.
        stopped: whether it was stopped.
    """

    places: dict[Result, set[int]] = field(default_factory=lambda: {r: set() for r in Result})
    reasons: dict[int, str] = field(default_factory=dict)
    before: dict[int, Result] = field(default_factory=dict)
    stopped: bool = False

    def count(self, result: Result) -> int:
        """Queries with this result in this run."""
        return len(self.places[result])

    @property
    def cached(self) -> set[int]:
        """Places of all cached queries."""
        earlier = {place for place, result in self.before.items() if result is not Result.REFUSED}
        return earlier | self.places[Result.GENERATED] | self.places[Result.CACHED]

    def note(self, place: int, outcome: Outcome) -> None:
        """Record one outcome; a later one replaces a failure."""
        self.places[Result.FAILED].discard(place)
        self.reasons.pop(place, None)
        self.places[outcome.result].add(place)
        if outcome.result is Result.FAILED:
            self.reasons[place] = outcome.reason


class BaseRun:
    """Fills the cache with the head of a plan; subclasses implement :meth:`_all`.

    Args:
        plan: all queries.
        head: number of the most frequent queries to process.
        journal: of this run.
        flush_at: number of finished queries that are recorded together.
    """

    def __init__(self, plan: Plan, head: int, *, journal: Journal, flush_at: int) -> None:
        self._plan = plan
        self._head = head
        self._journal = journal
        self._progress: Callable[[int], None] = lambda _: None
        self._flush_at = flush_at
        self._unnoted: dict[int, Result] = {}
        self._recent: deque[Outcome] = deque(maxlen=_HOPELESS)
        self._again = False
        self._stop = asyncio.Event()
        self.tally = Tally(before={p: r for p, r in journal.done.items() if p < head})

    def on_progress(self, listener: Callable[[int], None]) -> None:
        """Call ``listener`` with the number of finished queries, after each batch."""
        self._progress = listener

    def stop(self) -> None:
        """Start nothing more; :meth:`go` returns once the queries in progress have finished."""
        self.tally.stopped = True
        self._stop.set()

    async def go(self) -> Tally:
        """Work until all queries are finished or :meth:`stop` is called.

        Failures are retried once at the end.

        Raises:
            PrecomputeError: the run must end early; the journal has its results so far.
        """
        places = [place for place in range(self._head) if place not in self.tally.before]
        self._progress(self._done())
        try:
            await self._all(places)
            self._again = True
            await self._all(sorted(self.tally.places[Result.FAILED]))
        finally:
            self._flush()
        return self.tally

    async def _all(self, places: Sequence[int]) -> None:
        """Process the queries at these places, and :meth:`_note` their outcomes."""
        raise NotImplementedError

    def _note(self, places: Sequence[int], outcomes: Sequence[Outcome]) -> None:
        """Record outcomes.

        Raises:
            PrecomputeError: too many queries have failed in a row.
        """
        for place, outcome in zip(places, outcomes, strict=True):
            self.tally.note(place, outcome)
            if outcome.result is not Result.FAILED:
                self._unnoted[place] = outcome.result
        self._recent.extend(outcomes)
        self._progress(self._done())
        if len(self._unnoted) >= self._flush_at:
            self._flush()
        hopeless = len(self._recent) == _HOPELESS and not self._again
        if hopeless and all(one.result is Result.FAILED for one in self._recent):
            raise PrecomputeError(
                f"the last {_HOPELESS} queries failed ({outcomes[-1].reason}); mend that and run "
                "this again to go on"
            )

    def _flush(self) -> None:
        if self._unnoted:
            self._journal.append(self._unnoted, at=time.time())
            self._unnoted = {}

    def _done(self) -> int:
        return len(self.tally.before) + sum(
            self.tally.count(result) for result in Result if result is not Result.FAILED
        )


class Run(BaseRun):
    """A run in this process, by a :class:`Filler`.

    A kill loses at most one batch: no more queries than that are ever in progress, or finished and
    not yet recorded.

    Args:
        plan: all queries.
        head: number of the most frequent queries to process.
        filler: puts answers into the cache.
        journal: of this run.
        batch: limit on the queries that a kill can lose.
        pace: queries a second.
    """

    def __init__(
        self,
        plan: Plan,
        head: int,
        *,
        filler: Filler,
        journal: Journal,
        batch: int = 256,
        pace: Pace | None = None,
    ) -> None:
        self._filler = filler
        self._pace = pace or Pace(None)
        self._size = min(filler.size, batch)
        self._concurrency = max(1, min(filler.concurrency, batch // self._size))
        # With the queries in progress, this makes one batch.
        flush_at = max(1, batch - self._concurrency * self._size)
        super().__init__(plan, head, journal=journal, flush_at=flush_at)

    async def _all(self, places: Sequence[int]) -> None:
        chunks = _chunks(places, self._size)

        async def work() -> None:
            for chunk in chunks:
                await self._wait(self._pace.take(len(chunk)))
                if self._stop.is_set():
                    return
                await self._fill(chunk)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(self._concurrency):
                    group.create_task(work())
        except ExceptionGroup as errors:
            known = errors.subgroup(PrecomputeError)
            if known is None:
                raise
            raise known.exceptions[0] from None

    async def _fill(self, chunk: Sequence[int]) -> None:
        try:
            outcomes = await self._filler.fill([self._plan.queries[place] for place in chunk])
        except PrecomputeError:
            # An interrupt from the terminal stops the engine too.
            if self._stop.is_set():
                return
            raise
        self._note(chunk, outcomes)

    async def _wait(self, seconds: float) -> None:
        """Wait, or return early when the run is stopped."""
        if seconds > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), seconds)


def _chunks(places: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(places), size):
        yield places[start : start + size]
