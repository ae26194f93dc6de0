from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import pytest
from prometheus_client import CollectorRegistry

from service.errors import Overloaded
from service.resilience.admission import SHARES, Admission, Gate, Kind, Permit, Speed
from service.resilience.metrics import AdmissionMetrics
from tests.support.clock import Clock

_FOREVER = float("inf")


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cold(registry: CollectorRegistry, clock: Clock) -> Gate:
    """A gate for generations of 8 candidates, whose engine has not been measured."""
    return admission(registry, clock).gate("v", 8)


@pytest.fixture
def gate(cold: Gate, clock: Clock) -> Gate:
    """A gate that knows: a generation alone takes 0.8 s, four at a time take 1 s each."""
    for _ in range(50):
        measure(cold, clock, 1, 0.8)
        measure(cold, clock, 2, 0.8 + 0.2 / 3)
    measure(cold, clock, 4, 1.0)
    return cold


def admission(registry: CollectorRegistry, clock: Clock, *, waiting: int = 3) -> Admission:
    return Admission(
        AdmissionMetrics(registry), highest=32, target_s=2.0, max_waiting=waiting, clock=clock
    )


def measure(gate: Gate, clock: Clock, number: int, seconds: float) -> None:
    """Let ``number`` generations begin and end together."""
    permits = [gate.admit(8, Kind.SHOPPER) for _ in range(number)]
    clock.now += seconds
    for permit in permits:
        permit.release(completed=True)


def fill(gate: Gate, kind: Kind = Kind.SHOPPER) -> list[Permit]:
    """Permits until there are no more."""
    permits = []
    with suppress(Overloaded):
        while True:
            permits.append(gate.admit(8, kind))
    return permits


def started(permit: Permit) -> bool:
    return permit.turn is None or (permit.turn.done() and permit.turn.exception() is None)


class TestSpeed:
    def learned(self, *pairs: tuple[float, float]) -> Speed:
        speed = Speed()
        for candidates, seconds in pairs * 10:
            speed.learn(candidates, seconds)
        return speed

    def test_the_line_through_the_generations_is_found(self) -> None:
        speed = self.learned((8, 0.4), (64, 1.5), (32, 0.9))
        assert [speed.of(n) for n in (8, 32, 64)] == pytest.approx([0.4, 0.9, 1.5], abs=0.06)

    def test_without_a_second_point_it_grows_with_the_batch_but_slower(self) -> None:
        speed = self.learned((8, 0.4))
        assert speed.of(8) == pytest.approx(0.4)
        assert 0.4 < speed.of(16) < 0.8
        assert speed.margin == 0

    def test_it_forgets_and_its_margin_shows_how_wrong_it_was(self) -> None:
        speed = self.learned((8, 0.4))
        speed.learn(8, 1.4)
        assert speed.margin > 0
        for _ in range(100):
            speed.learn(8, 1.2)
        assert speed.of(8) == pytest.approx(1.2, abs=0.02)

    def test_it_never_gets_faster_with_the_batch(self) -> None:
        speed = self.learned((8, 0.9), (64, 0.4))
        assert speed.each == 0


class TestCapacity:
    def test_until_the_speed_is_measured_two_generations_are_under_way(self, cold: Gate) -> None:
        assert len(fill(cold)) == 2

    def test_shoppers_may_use_all_that_is_done_within_the_target(self, gate: Gate) -> None:
        assert gate.limit == 32
        assert len(fill(gate)) == 4

    def test_a_target_that_one_alone_misses_still_leaves_a_batch(
        self, cold: Gate, clock: Clock
    ) -> None:
        measure(cold, clock, 1, 10.0)
        assert 16 <= cold.limit <= 32

    def test_a_slower_engine_is_noticed(self, gate: Gate, clock: Clock) -> None:
        for _ in range(50):
            measure(gate, clock, 1, 1.2)
            measure(gate, clock, 2, 2.0)
        assert gate.limit < 24

    @pytest.mark.parametrize("kind", [k for k in Kind if k is not Kind.SHOPPER])
    def test_other_kinds_may_use_only_their_share(self, gate: Gate, kind: Kind) -> None:
        assert len(fill(gate, kind)) == int(4 * SHARES[kind])

    def test_an_idle_engine_takes_any_weight(self, gate: Gate) -> None:
        gate.admit(1000, Kind.SHADOW).release(completed=True)
        assert gate.in_use == 0

    def test_a_place_that_is_given_back_is_free(self, gate: Gate) -> None:
        first = fill(gate)[0]
        first.release(completed=True)
        first.release(completed=True)
        assert gate.in_use == 24
        gate.admit(8, Kind.SHOPPER)

    def test_a_permit_is_given_back_by_a_fault_too(self, gate: Gate) -> None:
        with pytest.raises(ZeroDivisionError), gate.admit(8, Kind.SHOPPER):
            _ = 1 / 0
        assert gate.in_use == 0

    def test_what_is_turned_away_is_counted(self, gate: Gate, registry: CollectorRegistry) -> None:
        fill(gate)
        labels = {"version": "v", "kind": "shopper"}
        assert registry.get_sample_value("requery_shed_total", labels) == 1
        assert registry.get_sample_value("requery_admission_in_use", {"version": "v"}) == 32
        assert registry.get_sample_value("requery_admission_limit", {"version": "v"}) == 32

    def test_tags_say_nothing_about_generations(self, cold: Gate, clock: Clock) -> None:
        permit = cold.admit(8, Kind.RELEVANCE)
        clock.now += 100
        permit.release(completed=False)
        assert len(fill(cold)) == 2

    def test_each_version_has_a_gate_of_its_own(
        self, registry: CollectorRegistry, clock: Clock
    ) -> None:
        gates = admission(registry, clock)
        assert gates.gate("a", 8) is gates.gate("a", 8)
        fill(gates.gate("a", 8))
        gates.gate("b", 8).admit(8, Kind.SHOPPER)


class TestEviction:
    def test_what_nobody_waits_for_makes_room_longest_idle_first(
        self, gate: Gate, registry: CollectorRegistry
    ) -> None:
        permits, ended = fill(gate), []
        permits[2].idle(lambda: ended.append(2))
        permits[1].idle(lambda: ended.append(1))
        assert started(gate.enter(8, Kind.SHOPPER, 5.0))
        assert ended == [2]
        assert gate.in_use == 32
        assert registry.get_sample_value("requery_generations_evicted_total", {"version": "v"}) == 1

    def test_not_for_work_that_nobody_waits_for_either(self, gate: Gate) -> None:
        fill(gate)[0].idle(lambda: None)
        for kind in (Kind.BATCH, Kind.REFRESH, Kind.SHADOW):
            with pytest.raises(Overloaded):
                gate.admit(8, kind)

    def test_nothing_is_ended_in_vain(self, gate: Gate) -> None:
        ended = []
        fill(gate)[0].idle(lambda: ended.append(0))
        with pytest.raises(Overloaded):
            gate.admit(16, Kind.SHOPPER)
        assert ended == []

    def test_nor_for_one_who_would_be_late_anyway(self, gate: Gate) -> None:
        ended = []
        fill(gate)[0].idle(lambda: ended.append(0))
        with pytest.raises(Overloaded):
            gate.enter(8, Kind.SHOPPER, 0.1)
        assert ended == []

    def test_what_somebody_waits_for_again_is_spared(self, gate: Gate) -> None:
        permits = fill(gate)
        permits[0].idle(lambda: None)
        permits[0].wanted(1.0, Kind.SHOPPER)
        with pytest.raises(Overloaded):
            gate.admit(8, Kind.SHOPPER)

    def test_work_that_was_evicted_late_shows_that_the_engine_is_slow(
        self, cold: Gate, clock: Clock
    ) -> None:
        """Otherwise an engine that finishes nothing in time would never be measured."""
        for permit in fill(cold):
            permit.idle(lambda: None)
        clock.now += 4.0
        assert started(cold.enter(8, Kind.SHOPPER, 30.0))
        with pytest.raises(Overloaded):
            cold.enter(8, Kind.SHOPPER, 3.6)


class TestPrediction:
    async def test_in_time_it_starts_else_it_is_refused_with_the_time_to_wait(
        self, gate: Gate
    ) -> None:
        assert started(gate.enter(8, Kind.SHOPPER, 3.0))
        with pytest.raises(Overloaded) as refused:
            gate.enter(8, Kind.SHOPPER, 0.85)
        assert refused.value.headers == {"Retry-After": "1"}
        assert gate.in_use == 8

    async def test_it_waits_if_its_deadline_allows(self, gate: Gate, clock: Clock) -> None:
        held = fill(gate)
        waiting = gate.enter(8, Kind.SHOPPER, 10.0)
        assert not started(waiting)
        clock.now += 1.0
        held[0].release(completed=True)
        assert started(waiting)

    async def test_retry_after_is_the_time_until_it_would_be_admitted(
        self, cold: Gate, clock: Clock
    ) -> None:
        measure(cold, clock, 1, 10.0)
        fill(cold)
        with pytest.raises(Overloaded) as refused:
            cold.enter(8, Kind.SHOPPER, 12.0)
        assert 3 <= int(refused.value.headers["Retry-After"]) <= 30

    async def test_nobody_starts_who_would_make_another_late(
        self, gate: Gate, clock: Clock
    ) -> None:
        measure(gate, clock, 1, 0.8)
        hurried = gate.enter(8, Kind.SHOPPER, 0.81 + gate._speed.margin)
        assert started(hurried)
        patient = gate.enter(8, Kind.SHOPPER, 20.0)
        assert not started(patient)
        hurried.release(completed=True)
        assert started(patient)

    async def test_a_deadline_too_short_for_any_answer_still_fills_the_cache(
        self, gate: Gate
    ) -> None:
        assert started(gate.enter(8, Kind.SHOPPER, 0.05))
        fill(gate)
        with pytest.raises(Overloaded):
            gate.enter(8, Kind.SHOPPER, 0.05)

    async def test_work_older_than_predicted_counts_as_a_slow_engine(
        self, gate: Gate, clock: Clock
    ) -> None:
        gate.enter(8, Kind.SHOPPER, 30.0)
        clock.now += 20.0
        with pytest.raises(Overloaded):
            gate.enter(8, Kind.SHOPPER, 10.0)


class TestLine:
    async def test_shoppers_are_first_then_the_earliest_deadline(
        self, gate: Gate, registry: CollectorRegistry
    ) -> None:
        held = fill(gate)
        batch = gate.enter(8, Kind.BATCH, 6.0)
        late, soon = (gate.enter(8, Kind.SHOPPER, seconds) for seconds in (30.0, 9.0))
        labels = {"version": "v"}
        assert registry.get_sample_value("requery_admission_waiting", labels) == 3
        order = []
        for permit in held:
            permit.release(completed=False)
            order.append([started(one) for one in (soon, late, batch)])
        assert order == [
            [True, False, False],
            [True, True, False],
            [True, True, False],  # a batch may use half of the limit
            [True, True, False],
        ]
        soon.release(completed=True)
        assert started(batch)
        admitted = {**labels, "outcome": "admitted"}
        name = "requery_admission_waited_seconds_count"
        assert registry.get_sample_value(name, admitted) == 3

    async def test_a_shopper_who_joins_a_batchs_work_brings_it_forward(self, gate: Gate) -> None:
        held = fill(gate)
        batch, other = (gate.enter(8, Kind.BATCH, 20.0) for _ in range(2))
        other.wanted(10.0, Kind.SHOPPER)
        held[0].release(completed=True)
        assert (started(other), started(batch)) == (True, False)

    async def test_it_is_bounded_for_shoppers(self, gate: Gate) -> None:
        fill(gate)
        for _ in range(3):
            gate.enter(8, Kind.SHOPPER, 60.0)
        with pytest.raises(Overloaded):
            gate.enter(8, Kind.SHOPPER, 60.0)
        gate.enter(8, Kind.BATCH, 60.0)

    async def test_an_earlier_deadline_does_not_push_out_one_who_was_let_in(
        self, gate: Gate
    ) -> None:
        fill(gate)  # one ends each quarter of a second
        kept = [gate.enter(8, Kind.SHOPPER, seconds) for seconds in (1.35, 1.6)]
        with pytest.raises(Overloaded):
            gate.enter(8, Kind.SHOPPER, 1.34)
        assert not any(started(permit) for permit in kept)

    @pytest.mark.parametrize(
        "leave",
        [
            lambda permit: permit.idle(lambda: None),
            lambda permit: permit.release(completed=False),
        ],
    )
    async def test_one_who_leaves_takes_no_place(
        self, gate: Gate, registry: CollectorRegistry, leave: Callable[[Permit], None]
    ) -> None:
        held = fill(gate)
        first, second = (gate.enter(8, Kind.SHOPPER, 20.0) for _ in range(2))
        leave(first)
        held[0].release(completed=True)
        assert started(second)
        assert gate.in_use == 32
        labels = {"version": "v", "outcome": "left"}
        assert registry.get_sample_value("requery_admission_waited_seconds_count", labels) == 1

    async def test_one_who_was_cancelled_in_line_takes_no_place(self, gate: Gate) -> None:
        held = fill(gate)
        waiting = gate.enter(8, Kind.SHOPPER, 20.0)
        assert waiting.turn is not None
        waiting.turn.cancel()
        held[0].release(completed=True)
        waiting.release(completed=False)
        assert gate.in_use == 24

    async def test_before_the_first_measurement_all_wait_and_then_the_late_are_refused(
        self, registry: CollectorRegistry, clock: Clock
    ) -> None:
        gate = admission(registry, clock, waiting=99).gate("v", 8)
        held = fill(gate)
        waiting = [gate.enter(8, Kind.SHOPPER, 8.0) for _ in range(30)]
        assert not any(started(permit) for permit in waiting)
        clock.now += 1.0
        held[0].release(completed=True)
        refused = [one for one in waiting if one.turn and one.turn.done() and one.turn.exception()]
        assert started(waiting[0])
        assert 0 < len(refused) < 29
        assert refused == waiting[-len(refused) :]


class Simulation:
    """An engine of ``fixed + each * candidates`` seconds a generation, and its callers.

    Args:
        fixed, each: see :class:`Speed`; the work of a generation varies by a fifth.
        callers: when each comes, in seconds, and the deadline that it allows.
        again: each comes again when it has been answered.
    """

    def __init__(
        self, fixed: float, each: float, callers: list[tuple[float, float]], *, again: bool = False
    ) -> None:
        self.good = self.refused = self.late = 0
        self._fixed, self._each, self._again = fixed, each, again
        self._callers, self._clock, self._rng = callers, Clock(), random.Random(5)
        self._clock.now = 0.0
        self._gate = Admission(
            AdmissionMetrics(CollectorRegistry()), highest=128, target_s=1.4, max_waiting=256,
            clock=self._clock,
        ).gate("v", 8)  # fmt: skip
        self._running: dict[Permit, float] = {}
        """Work left of each, in generations."""
        self._waiting: dict[Permit, tuple[float, float]] = {}
        """Deadline of each caller that waits, and what it allowed."""

    def run(self, seconds: float) -> None:
        """Until that time, or until all have been answered."""
        heapq.heapify(self._callers)
        while self._clock.now < seconds and (self._callers or self._waiting):
            span = self._fixed + self._each * 8 * len(self._running)
            end = _FOREVER
            if self._running:
                end = self._clock.now + span * min(self._running.values())
            due = min((due for due, _ in self._waiting.values()), default=_FOREVER)
            at = min(end, due, self._callers[0][0] if self._callers else _FOREVER)
            for permit in self._running:
                self._running[permit] -= (at - self._clock.now) / span
            self._clock.now = at
            if at == due:
                self._time_out(at)
            elif at == end:
                permit = min(self._running, key=self._running.__getitem__)
                del self._running[permit]
                if permit in self._waiting:
                    self.good += 1
                    self._answer(permit)
                permit.release(completed=True)
            else:
                self._arrive(heapq.heappop(self._callers)[1])
            self._look()

    def _arrive(self, deadline_s: float) -> None:
        try:
            permit = self._gate.enter(8, Kind.SHOPPER, deadline_s)
        except Overloaded:
            self.refused += 1
        else:
            self._waiting[permit] = (self._clock.now + deadline_s, deadline_s)

    def _answer(self, permit: Permit) -> None:
        _, deadline_s = self._waiting.pop(permit)
        if self._again:
            heapq.heappush(self._callers, (self._clock.now, deadline_s))

    def _time_out(self, at: float) -> None:
        for permit in [one for one, (due, _) in self._waiting.items() if due == at]:
            self.late += 1
            self._answer(permit)
            permit.idle(partial(self._stop, permit))

    def _stop(self, permit: Permit) -> None:
        self._running.pop(permit, None)

    def _look(self) -> None:
        for permit in tuple(self._waiting):
            if permit in self._running:
                continue
            if started(permit):
                self._running[permit] = self._rng.lognormvariate(0, 0.2)
            elif permit.turn is not None and permit.turn.done():
                self.refused += 1
                self._answer(permit)


def poisson(rate: float, seconds: float, *deadlines_s: float) -> list[tuple[float, float]]:
    rng, at, callers = random.Random(7), 0.0, []
    while (at := at + rng.expovariate(rate)) < seconds:
        callers.append((at, rng.choice(deadlines_s)))
    return callers


class TestSimulated:
    """Admission on a simulated engine: no clock of the machine is involved."""

    @pytest.mark.parametrize("alone_s", [1.0, 3.0, 6.0])
    @pytest.mark.parametrize("shared", [0.2, 1.0])
    async def test_two_callers_taking_turns_are_never_refused(
        self, alone_s: float, shared: float
    ) -> None:
        """However much of the engine's time a second generation costs."""
        each = shared * alone_s / 8
        callers = [(0.0, 30.0), (0.1, 30.0)]
        simulation = Simulation(alone_s - 8 * each, each, callers, again=True)
        simulation.run(2000)
        assert simulation.refused == simulation.late == 0
        assert simulation.good >= 200

    @pytest.mark.parametrize("deadlines_s", [(2.0,), (1.0,), (30.0,), (1.0, 2.0, 30.0)])
    @pytest.mark.parametrize(("fixed", "each", "capacity"), [(0.0, 1 / 64, 8), (0.3, 0.006, 10)])
    async def test_at_three_times_the_capacity_almost_all_of_it_is_good(
        self, fixed: float, each: float, capacity: float, deadlines_s: tuple[float, ...]
    ) -> None:
        callers = poisson(3 * capacity, 120, *deadlines_s)
        simulation = Simulation(fixed, each, callers.copy())
        simulation.run(120)
        assert simulation.good >= 0.9 * capacity * 120
        assert simulation.refused > 0
        assert simulation.late <= 0.02 * len(callers)

    async def test_well_below_the_capacity_nothing_is_turned_away(self) -> None:
        callers = poisson(3.0, 120, 2.0)
        simulation = Simulation(0.0, 1 / 64, callers.copy())
        simulation.run(200)
        assert simulation.refused == simulation.late == 0
        assert simulation.good == len(callers)
