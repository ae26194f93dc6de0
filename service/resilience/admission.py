"""Admission control by the caller's deadline: each engine's speed is measured, each end predicted.

An engine decodes many candidates in one batch. ``Speed`` learns how long a generation takes beside
how many candidates. From it the gate predicts when a newcomer would be done, after the work under
way and in line. The newcomer starts, or waits in a bounded line, if that is within its deadline
less a margin; otherwise it is refused at once. Within a kind the earliest deadline is first.
Nobody starts who would make an admitted caller late.

Candidates under way are limited to those that are done within a target, so that a hurried
newcomer still finds the engine responsive. Shoppers may use the whole limit. Work of another kind
is admitted only while less than its share of the limit is in use. A generation whose last deadline
has passed continues for the cache, and is evicted first when a shopper needs its capacity.
"""

from __future__ import annotations

import asyncio
import time
from bisect import insort
from collections.abc import Callable
from enum import StrEnum
from types import TracebackType
from typing import Self

from service.errors import Overloaded
from service.resilience.metrics import AdmissionMetrics

_FIRST = 2
"""Generations under way until the engine's speed is measured."""
_KEPT = 0.95
"""Weight of the past when a generation is learned: about the last twenty count."""
_SLOPE = 0.25
"""Growth of a generation's time with the batch, as a share of proportion, until it is measured."""
_LEAST_LEFT = 0.1
"""Share that a generation still needs although it has taken longer than predicted."""
_FOREVER = float("inf")


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
_RANKS = {kind: rank for rank, kind in enumerate(Kind)}


class Speed:
    """How long a generation takes: ``fixed + each * candidates`` under way, in seconds.

    A least-squares line through the recent generations. Until they differ in the candidates
    beside them, the growth is guessed as batches usually grow; a guess too low corrects itself.
    """

    def __init__(self) -> None:
        self._weight = self._candidates = self._seconds = 0.0
        self._variance = self._covariance = 0.0
        self.fixed = self.each = 0.0
        self.margin = 0.0
        """Seconds by which predictions were wrong, twice the mean."""

    @property
    def measured(self) -> bool:
        """Whether a generation has been learned."""
        return self._weight > 0

    def of(self, candidates: float) -> float:
        """Seconds of a generation beside which ``candidates`` are under way, its own included."""
        return self.fixed + self.each * candidates

    def learn(self, candidates: float, seconds: float) -> None:
        """Learn from a generation.

        Args:
            candidates: under way, on average over its time.
            seconds: that it took.
        """
        error = abs(seconds - self.of(candidates)) if self.measured else 0.0
        self._weight = self._weight * _KEPT + 1
        gain = 1 / self._weight
        self.margin += gain * (2 * error - self.margin)
        x, y = candidates - self._candidates, seconds - self._seconds
        self._candidates += gain * x
        self._seconds += gain * y
        self._variance = (1 - gain) * (self._variance + gain * x * x)
        self._covariance = (1 - gain) * (self._covariance + gain * x * y)
        prior = (0.1 * self._candidates) ** 2
        proportion = self._seconds / self._candidates
        slope = (self._covariance + prior * _SLOPE * proportion) / (self._variance + prior)
        self.each = min(max(slope, 0.0), proportion)
        self.fixed = self._seconds - self.each * self._candidates


class Permit:
    """The right to have ``weight`` candidates under way, or a place in the line for it.

    A context manager that releases it.

    Args:
        gate: grants the permit.
        weight: candidates.
        kind: of the work.
        due: when its caller needs the result, monotonic seconds.
    """

    __slots__ = ("_gate", "area", "begun_at", "due", "kind", "progress", "since", "turn", "weight")

    def __init__(self, gate: Gate, weight: int, kind: Kind, due: float) -> None:
        self._gate = gate
        self.weight = weight
        self.kind = kind
        self.due = due
        self.turn: asyncio.Future[None] | None = None
        """Done when the permit is granted or refused; ``None``: granted at once."""
        self.since = self.begun_at = self.progress = self.area = 0.0

    @property
    def order(self) -> tuple[int, float]:
        """Place in the line: by kind, then by deadline."""
        return _RANKS[self.kind], self.due

    def release(self, *, completed: bool) -> None:
        """Return the capacity or leave the line; idempotent.

        Args:
            completed: whether the work ran to its end.
        """
        self._gate.release(self, completed=completed)

    def idle(self, evict: Callable[[], None]) -> None:
        """No request waits for the work: ``evict`` stops it when its capacity is needed."""
        self._gate.idle(self, evict)

    def wanted(self, timeout_s: float, kind: Kind) -> None:
        """A request of this kind waits for the work, for ``timeout_s`` seconds."""
        self._gate.wanted(self, timeout_s, kind)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:  # fmt: skip
        self.release(completed=kind is None)


class Gate:
    """Admits work to one version's engine.

    Args:
        version: name of the version.
        candidates: of one generation.
        highest: upper bound on the candidates under way.
        target_s: time of a generation up to which candidates are added to the batch.
        max_waiting: generations for shoppers in the line, at most.
        metrics: counts what is rejected, evicted, and waits.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        version: str,
        candidates: int,
        *,
        highest: int,
        target_s: float,
        max_waiting: int,
        metrics: AdmissionMetrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._version = version
        self._candidates = min(candidates, highest)
        self._highest = highest
        self._target_s = target_s
        self._max_waiting = max_waiting
        self._metrics = metrics
        self._clock = clock
        self._speed = Speed()
        self._held: dict[Permit, None] = {}
        """Permits under way, oldest first."""
        self._idle: dict[Permit, Callable[[], None]] = {}
        """How to evict the work that no request waits for, longest idle first."""
        self._line: list[Permit] = []
        """In the order of :attr:`Permit.order`."""
        self._at = clock()
        self._progress = self._area = 0.0
        """Of a generation that has always been under way: its shares done, candidate-seconds."""
        self.in_use = 0
        metrics.watch(
            version,
            limit=lambda: self.limit,
            in_use=lambda: self.in_use,
            waiting=lambda: len(self._line),
            kinds=tuple(Kind),
        )

    @property
    def limit(self) -> float:
        """Candidates that may be under way: those that are done within the target.

        If a generation alone takes longer, those that are done within twice its time.
        """
        speed = self._speed
        if not speed.measured:
            return min(_FIRST * self._candidates, self._highest)
        target_s = max(self._target_s, 2 * speed.of(self._candidates))
        fits = (target_s - speed.fixed) / speed.each if speed.each else _FOREVER
        return min(max(fits, self._candidates), self._highest)

    def admit(self, weight: int, kind: Kind) -> Permit:
        """A permit for work that cannot wait.

        Raises:
            Overloaded: there is no capacity for work of this kind now.
        """
        permit = Permit(self, weight, kind, _FOREVER)
        self._advance()
        ahead = self._line and self._line[0].order <= permit.order
        if ahead or not self._try_start(permit):
            self._refuse(permit, self._speed.of(self.in_use))
        return permit

    def enter(self, weight: int, kind: Kind, timeout_s: float) -> Permit:
        """A permit for a caller that waits ``timeout_s`` seconds, now or by its ``turn``.

        Raises:
            Overloaded: it would not be done in time, or the line is full. ``turn`` raises it, too,
                if that shows with the first measurement of the engine's speed.
        """
        self._advance()
        permit = Permit(self, weight, kind, self._at + timeout_s)
        permit.since = self._at
        speed = self._speed
        if self._alone_too_late(permit):
            # For the cache alone, if there is room; its caller gets what is ready in time.
            first = all(self._alone_too_late(other) for other in self._line)
            if first and self._startable(permit) and self._try_start(permit):
                return permit
            if kind is Kind.SHOPPER:
                self._refuse(permit, speed.of(self.in_use))
        elif kind is Kind.SHOPPER and (in_use := self._wanted()):
            late_s = self._late_s(permit, in_use)
            if late_s > 0:  # and waiting would only make it later
                self._refuse(permit, late_s)
        if not self._line and self._try_start(permit):
            return permit
        permit.turn = asyncio.get_running_loop().create_future()
        insort(self._line, permit, key=lambda waiting: waiting.order)
        self._wake()
        if permit not in self._line:
            return permit
        over_s = self._overrun(permit)
        if kind is not Kind.BATCH and len(self._line) > self._max_waiting:
            over_s = max(over_s, speed.of(self.in_use))
        elif not over_s:
            return permit
        self._line.remove(permit)
        self._refuse(permit, over_s)
        return permit

    def client_disconnected(self) -> None:
        """Count a client that disconnected while it waited."""
        self._metrics.client_disconnected(self._version)

    def release(self, permit: Permit, *, completed: bool) -> None:
        """See :meth:`Permit.release`."""
        self._advance()
        if permit in self._line:
            self._leave(permit)
        elif permit in self._held:
            self._drop(permit, completed=completed)
        else:
            return
        self._wake()

    def idle(self, permit: Permit, evict: Callable[[], None]) -> None:
        """See :meth:`Permit.idle`."""
        self._advance()
        if permit in self._line:
            self._leave(permit)
            evict()
        elif permit in self._held:
            self._idle[permit] = evict
        self._wake()

    def wanted(self, permit: Permit, timeout_s: float, kind: Kind) -> None:
        """See :meth:`Permit.wanted`."""
        self._idle.pop(permit, None)
        waits = permit in self._line
        if waits:
            self._line.remove(permit)
        permit.due = max(permit.due, self._clock() + timeout_s)
        permit.kind = min(permit.kind, kind, key=_RANKS.__getitem__)
        if waits:
            insort(self._line, permit, key=lambda waiting: waiting.order)
            self._advance()
            self._wake()

    def _advance(self) -> None:
        """Count the time since the last event as progress of what is under way."""
        now = self._clock()
        seconds, self._at = now - self._at, now
        self._area += seconds * self.in_use
        if self.in_use and self._speed.measured:
            self._progress += seconds / self._speed.of(self.in_use)

    def _left(self, permit: Permit) -> float:
        """Share of a generation under way that is still to do."""
        return max(_LEAST_LEFT, 1 - (self._progress - permit.progress))

    def _wanted(self) -> int:
        """Candidates under way that a request waits for."""
        return self.in_use - sum(one.weight for one in self._idle)

    def _span(self, candidates: int) -> float:
        """Predicted seconds of a generation beside ``candidates``: at least the oldest's so far."""
        oldest = next((one for one in self._held if one.kind is not Kind.RELEVANCE), None)
        age = self._at - oldest.begun_at if oldest else 0.0
        return max(self._speed.of(candidates), age)

    def _late_s(self, permit: Permit, in_use: int) -> float:
        """Seconds, margin included, by which it would be late if it started now beside ``in_use``.

        Others follow those that end, so the batch is taken to stay as large.
        """
        speed = self._speed
        if not speed.measured:
            return -_FOREVER
        return self._at + self._span(in_use + permit.weight) + speed.margin - permit.due

    def _alone_too_late(self, permit: Permit) -> bool:
        """Whether it would be late on an idle engine, too."""
        return self._speed.measured and self._at + self._speed.of(permit.weight) > permit.due

    def _startable(self, permit: Permit, *, evicting: bool = False) -> bool:
        """Whether it may start beside what is under way, or beside the part that is wanted."""
        in_use = self._wanted() if evicting else self.in_use
        if not in_use:
            return True  # an idle engine admits work of any weight
        if in_use + permit.weight > self.limit * SHARES[permit.kind]:
            return False
        if self._late_s(permit, in_use) > 0 and not self._alone_too_late(permit):
            return False
        speed = self._speed
        slower_s = speed.each * permit.weight
        for one in self._held:
            left = self._left(one)
            end = self._at + left * speed.of(in_use) + speed.margin
            if end <= one.due < end + left * slower_s and one not in self._idle:
                return False
        return True

    def _try_start(self, permit: Permit) -> bool:
        """Grant the permit if it may start, if need be in the place of idle work."""
        if not self._startable(permit):
            # Evict only for a caller that waits, and only if that makes enough room.
            if permit.kind not in (Kind.SHOPPER, Kind.RELEVANCE) or not self._idle:
                return False
            if not self._startable(permit, evicting=True):
                return False
            while not self._startable(permit):
                if not self._idle:  # the evicted work has shown that the engine is slower
                    return False
                idle, evict = next(iter(self._idle.items()))
                self._metrics.evicted(self._version)
                self._drop(idle, completed=False)
                evict()
        permit.begun_at, permit.progress, permit.area = self._at, self._progress, self._area
        self._held[permit] = None
        self.in_use += permit.weight
        return True

    def _drop(self, permit: Permit, *, completed: bool) -> None:
        """End the work, and learn from its time."""
        del self._held[permit]
        idle = self._idle.pop(permit, None) is not None
        self.in_use -= permit.weight
        seconds = self._at - permit.begun_at
        if seconds <= 0 or permit.kind is Kind.RELEVANCE:
            return
        candidates = (self._area - permit.area) / seconds
        speed = self._speed
        # One that was stopped would have taken longer: it can only show that the engine is slower.
        first = not speed.measured
        if completed or (seconds > speed.of(candidates) and (idle or not first)):
            speed.learn(candidates, seconds)
            if first:
                self._review()

    def _overrun(self, permit: Permit) -> float:
        """Seconds by which the line, with ``permit`` in it, would be late; 0: all are in time.

        The prediction: the line moves on as fast as what is under way ends, and the batch stays
        as large. Batches wait as long as they can.
        """
        speed = self._speed
        if permit.kind is not Kind.SHOPPER or not speed.measured:
            return 0.0
        in_use = max(self.in_use, permit.weight)
        span = self._span(in_use)

        def end(weight: int) -> float:
            return self._at + weight * span / in_use + span

        ahead, behind = 0, False
        for one in self._line:
            if one.kind is not Kind.SHOPPER:
                break
            if self._alone_too_late(one):
                continue
            ahead += one.weight
            late = end(ahead) - one.due
            if one is permit:
                behind = True
                late += 2 * speed.margin
                if late > 0:
                    return late
            elif behind and late > 0 >= end(ahead - permit.weight) - one.due:
                return late
        return 0.0

    def _review(self) -> None:
        """Refuse those in line, unmeasured until now, who would be late."""
        for permit in reversed([one for one in self._line if one.kind is Kind.SHOPPER]):
            over_s = self._overrun(permit)
            if over_s and permit.turn is not None and not permit.turn.done():
                self._line.remove(permit)
                self._metrics.shed(self._version, permit.kind)
                permit.turn.set_exception(_overloaded(over_s))
                permit.turn.exception()  # seen, though its flight may never ask

    def _leave(self, permit: Permit) -> None:
        self._line.remove(permit)
        self._metrics.waited(self._version, self._at - permit.since, admitted=False)

    def _wake(self) -> None:
        """Start those in line who may, in order; who would be late now only waits for its end."""
        for permit in tuple(self._line):
            turn = permit.turn
            late = self._late_s(permit, self._wanted()) > 0
            if turn is None or turn.done() or late:
                continue
            if not self._try_start(permit):
                break
            self._line.remove(permit)
            self._metrics.waited(self._version, self._at - permit.since, admitted=True)
            turn.set_result(None)

    def _refuse(self, permit: Permit, wait_s: float) -> None:
        self._metrics.shed(self._version, permit.kind)
        raise _overloaded(wait_s)


def _overloaded(wait_s: float) -> Overloaded:
    return Overloaded(
        "the engine has as much to do as it can finish in time; search without rewrites, and ask "
        "again later",
        wait_s=wait_s,
    )


class Admission:
    """The gates of all versions, created on demand.

    Args:
        metrics: of all gates.
        highest: upper bound on the candidates under way with one engine.
        target_s: target time of a generation in seconds.
        max_waiting: generations for shoppers in the line of one engine, at most.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        metrics: AdmissionMetrics,
        *,
        highest: int,
        target_s: float,
        max_waiting: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics
        self._highest = highest
        self._target_s = target_s
        self._max_waiting = max_waiting
        self._clock = clock
        self._gates: dict[str, Gate] = {}

    def gate(self, version: str, candidates: int) -> Gate:
        """The gate of a version whose generations have ``candidates`` candidates."""
        gate = self._gates.get(version)
        if gate is None:
            gate = self._gates[version] = Gate(
                version,
                candidates,
                highest=self._highest,
                target_s=self._target_s,
                max_waiting=self._max_waiting,
                metrics=self._metrics,
                clock=self._clock,
            )
        return gate
