"""Who may use an engine now: a limit on candidates being generated, learned from how long it takes.

An engine decodes many candidates side by side: throughput rises with their number, and so does
the time that each takes, up to where more of them only wait. The best place is as many as still
come within a shopper's deadline. So the limit follows AIMD, as TCP's congestion window does: it
rises by one generation for each round that came in time while the limit was in use, and falls by
a fifth when one took longer than the target. A limiter by latency gradient (which compares with
the latency of an idle engine) would stop far below that place, since a batch is slower than one
request long before the engine is full.

Work for shoppers may use the whole limit. What nobody waits for gives way first: each kind of
work is let in only while less than its share of the limit is in use. A generation whose caller's
deadline has passed goes on to fill the cache, and is the first to end when its place is wanted.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from types import TracebackType
from typing import Self

from prometheus_client import CollectorRegistry, Counter, Gauge

from service.errors import Overloaded

_FALL = 0.8
_FIRST = 0.5
"""Of the highest limit: where learning starts."""


class Kind(StrEnum):
    """What a permit is for."""

    SHOPPER = "shopper"
    RELEVANCE = "relevance"
    BATCH = "batch"
    REFRESH = "refresh"
    SHADOW = "shadow"


SHARES = {
    Kind.SHOPPER: 1.0,
    Kind.RELEVANCE: 0.75,
    Kind.BATCH: 0.5,
    Kind.REFRESH: 0.25,
    Kind.SHADOW: 0.25,
}
"""Share of the limit that may be in use, its own work included, for a kind to be let in."""


class Limit:
    """How many candidates may be under way: additive increase, multiplicative decrease.

    Args:
        first: candidates to begin with.
        lowest: the limit never falls below this: one generation.
        highest: nor rises above this.
        target_s: seconds that a generation should take at most.
    """

    def __init__(self, *, first: float, lowest: float, highest: float, target_s: float) -> None:
        self._lowest = min(lowest, highest)
        self._highest = highest
        self._target_s = target_s
        self._fell_at = float("-inf")
        self.value = min(max(first, self._lowest), highest)

    def learn(
        self, *, weight: int, begun_at: float, ended_at: float, in_use: int, whole: bool = True
    ) -> None:
        """Take a generation into account.

        Args:
            weight: its candidates.
            begun_at: when it was let in, monotonic seconds.
            ended_at: when it ended.
            in_use: candidates under way when it ended, its own included.
            whole: whether it came to its end; else it would have taken longer.
        """
        if ended_at - begun_at > self._target_s:
            # Those that began before the last fall say nothing of the limit since.
            if begun_at >= self._fell_at:
                self._fell_at = ended_at
                self.value = max(self._lowest, self.value * _FALL)
        elif whole and 2 * in_use >= self.value:
            # A limit that nobody reaches is no evidence that more would come in time.
            self.value = min(self._highest, self.value + weight * weight / self.value)


class AdmissionMetrics:
    """Limits, their use, and what was turned away.

    Args:
        registry: where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._limit = Gauge(
            "requery_admission_limit",
            "Candidates that may be under way with the version's engine, as learned",
            ["version"],
            registry=registry,
        )
        self._in_use = Gauge(
            "requery_admission_in_use",
            "Candidates under way with the version's engine",
            ["version"],
            registry=registry,
        )
        self._waiting = Gauge(
            "requery_admission_waiting",
            "Generations for batches that wait for a place; shoppers never wait for one",
            ["version"],
            registry=registry,
        )
        self._shed = Counter(
            "requery_shed",
            "Work turned away since the engine was full, by kind",
            ["version", "kind"],
            registry=registry,
        )
        self._evicted = Counter(
            "requery_generations_evicted",
            "Generations that nobody waited for, ended since their place was wanted",
            ["version"],
            registry=registry,
        )
        self._hangups = Counter(
            "requery_hangups",
            "Callers who hung up while they waited for the engine",
            ["version"],
            registry=registry,
        )

    def watch(self, version: str, gate: Gate) -> None:
        """Read limit and use at every scrape."""
        self._limit.labels(version).set_function(lambda: gate.limit)
        self._in_use.labels(version).set_function(lambda: gate.in_use)
        self._waiting.labels(version).set_function(lambda: gate.waiting)
        for kind in Kind:
            self._shed.labels(version, kind.value)
        self._evicted.labels(version)
        self._hangups.labels(version)

    def shed(self, version: str, kind: Kind) -> None:
        """Count work that was turned away."""
        self._shed.labels(version, kind.value).inc()

    def evicted(self, version: str) -> None:
        """Count a generation that was ended for another."""
        self._evicted.labels(version).inc()

    def hung_up(self, version: str) -> None:
        """Count a caller who hung up."""
        self._hangups.labels(version).inc()


class Permit:
    """The right to have ``weight`` candidates under way; a context manager that gives it back."""

    __slots__ = ("_evict", "_gate", "begun_at", "weight")

    def __init__(self, gate: Gate, weight: int, begun_at: float) -> None:
        self._gate: Gate | None = gate
        self.begun_at = begun_at
        self._evict: Callable[[], None] | None = None
        self.weight = weight

    def release(self, *, whole: bool) -> None:
        """Give the place back; idempotent.

        Args:
            whole: whether the work came to its end.
        """
        gate, self._gate = self._gate, None
        if gate is not None:
            gate.give_back(self, whole=whole)

    def idle(self, evict: Callable[[], None]) -> None:
        """Nobody waits for the work any more: ``evict`` ends it if its place is wanted."""
        if self._gate is not None:
            self._evict = evict
            self._gate.idle(self)

    def wanted(self) -> None:
        """Somebody waits for the work again."""
        self._evict = None
        if self._gate is not None:
            self._gate.busy(self)

    def evict(self) -> None:
        """End the work at once and give its place back."""
        evict, self._evict = self._evict, None
        self.release(whole=False)
        if evict is not None:
            evict()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        self.release(whole=kind is None)


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    weight: int
    kind: Kind
    turn: asyncio.Future[Permit]


class Gate:
    """Lets work to one version's engine, up to a learned limit.

    Args:
        version: name of the version.
        limit: the limit.
        metrics: where it is counted what is turned away.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        version: str,
        limit: Limit,
        metrics: AdmissionMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._version = version
        self._limit = limit
        self._metrics = metrics
        self._clock = clock
        self._idle: dict[Permit, None] = {}
        """Permits of work that nobody waits for, longest idle first."""
        self._queue: deque[_Waiting] = deque()
        self.in_use = 0
        metrics.watch(version, self)

    @property
    def limit(self) -> float:
        """Candidates that may be under way."""
        return self._limit.value

    @property
    def waiting(self) -> int:
        """Those in :meth:`wait` that have no place yet."""
        return len(self._queue)

    def admit(self, weight: int, kind: Kind) -> Permit:
        """A permit for ``weight`` candidates, at once.

        Raises:
            Overloaded: there is no place for work of this kind now.
        """
        # For a shopper who waits, not for one more thing that nobody waits for; and not in vain.
        idle = sum(permit.weight for permit in self._idle)
        may_evict = kind in (Kind.SHOPPER, Kind.RELEVANCE) and self._fits(weight, kind, freed=idle)
        while not self._fits(weight, kind):
            victim = next(iter(self._idle), None)
            if victim is None or not may_evict:
                self._metrics.shed(self._version, kind)
                raise Overloaded(
                    "the engine has as much to do as it can finish in time; search without "
                    "rewrites, and ask again in a second"
                )
            self._metrics.evicted(self._version)
            victim.evict()
        return self._grant(weight)

    async def wait(self, weight: int, kind: Kind, timeout_s: float) -> Permit | None:
        """A permit as soon as there is a place, first come, first served; ``None`` if none came.

        For work that can wait; shoppers cannot, so they do not queue and are let in before.
        """
        if not self._queue and self._fits(weight, kind):
            return self._grant(weight)
        turn: asyncio.Future[Permit] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(weight, kind, turn)
        self._queue.append(waiting)
        try:
            await asyncio.wait((turn,), timeout=timeout_s)
        except asyncio.CancelledError:
            if turn.done():
                turn.result().release(whole=False)
            raise
        finally:
            if not turn.done():
                self._queue.remove(waiting)
        if turn.done():
            return turn.result()
        self._metrics.shed(self._version, kind)
        return None

    def hung_up(self) -> None:
        """Count a caller who hung up while waiting."""
        self._metrics.hung_up(self._version)

    def give_back(self, permit: Permit, *, whole: bool) -> None:
        """A permit is given back."""
        self._idle.pop(permit, None)
        self._limit.learn(
            weight=permit.weight,
            begun_at=permit.begun_at,
            ended_at=self._clock(),
            in_use=self.in_use,
            whole=whole,
        )
        self.in_use -= permit.weight
        self._wake()

    def idle(self, permit: Permit) -> None:
        """Nobody waits for the permit's work any more."""
        self._idle[permit] = None

    def busy(self, permit: Permit) -> None:
        """Somebody waits for it again."""
        self._idle.pop(permit, None)

    def _fits(self, weight: int, kind: Kind, *, freed: int = 0) -> bool:
        in_use = self.in_use - freed
        # Whatever its weight, work is let in when there is none.
        return not in_use or in_use + weight <= self._limit.value * SHARES[kind]

    def _grant(self, weight: int) -> Permit:
        self.in_use += weight
        return Permit(self, weight, self._clock())

    def _wake(self) -> None:
        while self._queue and self._fits(self._queue[0].weight, self._queue[0].kind):
            first = self._queue.popleft()
            first.turn.set_result(self._grant(first.weight))


class Admission:
    """The gates of all versions, made as they are needed.

    Args:
        metrics: of all gates.
        highest: most candidates under way with one engine, whatever is learned.
        target_s: seconds that a generation should take at most.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        metrics: AdmissionMetrics,
        *,
        highest: int,
        target_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics
        self._highest = highest
        self._target_s = target_s
        self._clock = clock
        self._gates: dict[str, Gate] = {}

    def gate(self, version: str, candidates: int) -> Gate:
        """The gate of a version, each generation of which has so many candidates."""
        gate = self._gates.get(version)
        if gate is None:
            limit = Limit(
                first=self._highest * _FIRST,
                lowest=candidates,
                highest=self._highest,
                target_s=self._target_s,
            )
            gate = self._gates[version] = Gate(version, limit, self._metrics, self._clock)
        return gate
