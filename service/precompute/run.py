"""A run: many queries at a time, noted in the journal batch by batch, stopped without loss."""

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
"""So many failures in a row say that going on makes no sense."""


class Outcome(NamedTuple):
    """What became of one query, and why if it failed."""

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
            PrecomputeError: going on makes no sense.
        """


class Pace:
    """Keeps to a number of queries a second, however long each takes.

    Args:
        per_second: queries; ``None`` for as many as will go.
        clock: monotonic seconds.
    """

    def __init__(
        self, per_second: float | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._interval = 0.0 if per_second is None else 1.0 / per_second
        self._clock = clock
        self._free_at = 0.0

    def take(self, n: int) -> float:
        """Seconds to wait before ``n`` queries may go."""
        now = self._clock()
        begin = max(now, self._free_at)
        self._free_at = begin + n * self._interval
        return begin - now


@dataclass(slots=True)
class Tally:
    """What a run has done so far.

    Attributes:
        places: places in the plan by result; what earlier runs did counts for ``before`` alone.
        reasons: why a query failed, by place.
        before: queries done by earlier runs.
        stopped: whether it was told to stop.
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
        """Places of all queries that are in the cache now."""
        earlier = {place for place, result in self.before.items() if result is not Result.REFUSED}
        return earlier | self.places[Result.GENERATED] | self.places[Result.CACHED]

    def note(self, place: int, outcome: Outcome) -> None:
        """Take note of one outcome; a later one replaces an earlier failure."""
        self.places[Result.FAILED].discard(place)
        self.reasons.pop(place, None)
        self.places[outcome.result].add(place)
        if outcome.result is Result.FAILED:
            self.reasons[place] = outcome.reason


class BaseRun:
    """Fills the cache with the head of a plan, somehow; :meth:`_all` says how.

    Args:
        plan: all queries.
        head: how many of them, from the most frequent.
        journal: knows what is done.
        flush_at: queries that are done before they are noted in the journal.
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

    def on_progress(self, told: Callable[[int], None]) -> None:
        """Tell how many queries of the head are done, now and again."""
        self._progress = told

    def stop(self) -> None:
        """Begin nothing more; :meth:`go` returns once what is under way has finished."""
        self.tally.stopped = True
        self._stop.set()

    async def go(self) -> Tally:
        """Work until all is done or :meth:`stop` is called. The journal is whole at any moment.

        What fails is tried once more at the end.

        Raises:
            PrecomputeError: going on makes no sense. What was done until then is in the journal.
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
        """Do the queries at these places, and :meth:`_note` what becomes of them."""
        raise NotImplementedError

    def _note(self, places: Sequence[int], outcomes: Sequence[Outcome]) -> None:
        """Take note of what became of some queries.

        Raises:
            PrecomputeError: one failed after the other.
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

    A batch bounds what a kill can lose: no more queries than that are ever under way or done and
    not yet in the journal.

    Args:
        plan: all queries.
        head: how many of them, from the most frequent.
        filler: puts answers into the cache.
        journal: knows what is done.
        batch: queries.
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
        # With what is under way besides, this makes one batch.
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
            # Whoever stops a run from a terminal stops the engine with it.
            if self._stop.is_set():
                return
            raise
        self._note(chunk, outcomes)

    async def _wait(self, seconds: float) -> None:
        """Wait, but not once the run is to stop."""
        if seconds > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), seconds)


def _chunks(places: Sequence[int], size: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(places), size):
        yield places[start : start + size]
