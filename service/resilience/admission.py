"""Admission control: a limit on concurrent candidates for each engine, learned from latency.

An engine decodes many candidates in one batch. Throughput rises with the batch, and so does the
latency of each candidate. The best limit is the largest batch that still meets a shopper's
deadline. So the limit follows AIMD, like TCP's congestion window: it rises by one generation for
each round that meets the target while the limit is in use, and falls by a fifth when a generation
exceeds the target. A limiter by latency gradient compares with the latency of an idle engine; it
would stop far too low, because a batch is slower than one request long before the engine is full.

Shoppers may use the whole limit. Work of another kind is admitted only while less than its share
of the limit is in use. A generation whose last deadline has passed continues for the cache, and is
evicted first when a shopper needs its capacity.
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

from service.errors import Overloaded
from service.resilience.metrics import AdmissionMetrics

_FALL = 0.8
_FIRST = 0.5
"""Share of the highest limit at which learning starts."""


class Kind(StrEnum):
    """The kind of work that a permit is for."""

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
"""Share of the limit that may be in use, the new work included, for a kind to be admitted."""


class Limit:
    """The limit on concurrent candidates: additive increase, multiplicative decrease.

    Args:
        first: initial limit.
        lowest: lower bound: one generation.
        highest: upper bound.
        target_s: target latency of a generation in seconds.
    """

    def __init__(self, *, first: float, lowest: float, highest: float, target_s: float) -> None:
        self._lowest = min(lowest, highest)
        self._highest = highest
        self._target_s = target_s
        self._fell_at = float("-inf")
        self.value = min(max(first, self._lowest), highest)

    def learn(
        self, *, weight: int, begun_at: float, ended_at: float, in_use: int, completed: bool = True
    ) -> None:
        """Learn from one generation.

        Args:
            weight: its candidates.
            begun_at: when it was admitted, monotonic seconds.
            ended_at: when it ended.
            in_use: candidates under way when it ended, its own included.
            completed: whether it ran to its end; otherwise it would have taken longer.
        """
        if ended_at - begun_at > self._target_s:
            # A generation from before the last fall says nothing about the present limit.
            if begun_at >= self._fell_at:
                self._fell_at = ended_at
                self.value = max(self._lowest, self.value * _FALL)
        elif completed and 2 * in_use >= self.value:
            # An unused limit is no evidence that a higher one would meet the target.
            self.value = min(self._highest, self.value + weight * weight / self.value)


class Permit:
    """The right to have ``weight`` candidates under way; a context manager that releases it.

    Args:
        gate: granted the permit.
        weight: candidates.
        begun_at: monotonic seconds.
    """

    __slots__ = ("_gate", "begun_at", "weight")

    def __init__(self, gate: Gate, weight: int, begun_at: float) -> None:
        self._gate = gate
        self.weight = weight
        self.begun_at = begun_at

    def release(self, *, completed: bool) -> None:
        """Return the capacity; idempotent.

        Args:
            completed: whether the work ran to its end.
        """
        self._gate.release(self, completed=completed)

    def idle(self, evict: Callable[[], None]) -> None:
        """No request waits for the work: ``evict`` stops it when its capacity is needed."""
        self._gate.idle(self, evict)

    def wanted(self) -> None:
        """A request waits for the work again."""
        self._gate.wanted(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        self.release(completed=kind is None)


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    weight: int
    kind: Kind
    turn: asyncio.Future[Permit]


class Gate:
    """Admits work to one version's engine, up to a learned limit.

    Args:
        version: name of the version.
        limit: the limit.
        metrics: counts what is rejected and evicted.
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
        self._held: set[Permit] = set()
        self._idle: dict[Permit, Callable[[], None]] = {}
        """How to evict the work that no request waits for, longest idle first."""
        self._queue: deque[_Waiting] = deque()
        self.in_use = 0
        metrics.watch(
            version,
            limit=lambda: limit.value,
            in_use=lambda: self.in_use,
            waiting=lambda: len(self._queue),
            kinds=tuple(Kind),
        )

    @property
    def limit(self) -> float:
        """Candidates that may be under way."""
        return self._limit.value

    def admit(self, weight: int, kind: Kind) -> Permit:
        """A permit for ``weight`` candidates, at once.

        Raises:
            Overloaded: there is no capacity for work of this kind now.
        """
        # Evict only for a caller that waits, and only if that makes enough room.
        idle = sum(permit.weight for permit in self._idle)
        may_evict = kind in (Kind.SHOPPER, Kind.RELEVANCE) and self._fits(weight, kind, freed=idle)
        while not self._fits(weight, kind):
            if not self._idle or not may_evict:
                self._metrics.shed(self._version, kind)
                raise Overloaded(
                    "the engine has as much to do as it can finish in time; search without "
                    "rewrites, and ask again in a second"
                )
            permit, evict = next(iter(self._idle.items()))
            self._metrics.evicted(self._version)
            self.release(permit, completed=False)
            evict()
        return self._grant(weight)

    async def wait(self, weight: int, kind: Kind, timeout_s: float) -> Permit | None:
        """A permit as soon as there is capacity, first come, first served; ``None`` on time-out.

        For work that can wait. Shoppers do not queue, and are admitted first.
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
                turn.result().release(completed=False)
            raise
        finally:
            if not turn.done():
                self._queue.remove(waiting)
        if turn.done():
            return turn.result()
        self._metrics.shed(self._version, kind)
        return None

    def client_disconnected(self) -> None:
        """Count a client that disconnected while it waited."""
        self._metrics.client_disconnected(self._version)

    def release(self, permit: Permit, *, completed: bool) -> None:
        """See :meth:`Permit.release`."""
        if permit not in self._held:
            return
        self._held.remove(permit)
        self._idle.pop(permit, None)
        self._limit.learn(
            weight=permit.weight,
            begun_at=permit.begun_at,
            ended_at=self._clock(),
            in_use=self.in_use,
            completed=completed,
        )
        self.in_use -= permit.weight
        self._wake()

    def idle(self, permit: Permit, evict: Callable[[], None]) -> None:
        """See :meth:`Permit.idle`."""
        if permit in self._held:
            self._idle[permit] = evict

    def wanted(self, permit: Permit) -> None:
        """See :meth:`Permit.wanted`."""
        self._idle.pop(permit, None)

    def _fits(self, weight: int, kind: Kind, *, freed: int = 0) -> bool:
        in_use = self.in_use - freed
        # An idle engine admits work of any weight.
        return not in_use or in_use + weight <= self._limit.value * SHARES[kind]

    def _grant(self, weight: int) -> Permit:
        self.in_use += weight
        permit = Permit(self, weight, self._clock())
        self._held.add(permit)
        return permit

    def _wake(self) -> None:
        while self._queue and self._fits(self._queue[0].weight, self._queue[0].kind):
            first = self._queue.popleft()
            first.turn.set_result(self._grant(first.weight))


class Admission:
    """The gates of all versions, created on demand.

    Args:
        metrics: of all gates.
        highest: upper bound on the candidates under way with one engine.
        target_s: target latency of a generation in seconds.
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
        """The gate of a version whose generations have ``candidates`` candidates."""
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
