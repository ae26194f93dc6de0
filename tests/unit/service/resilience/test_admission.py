from __future__ import annotations

import asyncio
import heapq
import random

import pytest
from prometheus_client import CollectorRegistry

from service.errors import Overloaded
from service.resilience.admission import SHARES, Admission, Gate, Kind, Limit, Permit
from service.resilience.metrics import AdmissionMetrics
from tests.support.clock import Clock


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def gate(registry: CollectorRegistry, clock: Clock) -> Gate:
    """A gate for 32 candidates to begin with, 64 at most, each generation having 8."""
    admission = Admission(AdmissionMetrics(registry), highest=64, target_s=1.0, clock=clock)
    return admission.gate("v", 8)


def fill(gate: Gate, kind: Kind = Kind.SHOPPER) -> list[Permit]:
    """Permits until there are no more."""
    permits = []
    while True:
        try:
            permits.append(gate.admit(8, kind))
        except Overloaded:
            return permits


class TestLimit:
    def limit(self, first: float = 32.0) -> Limit:
        return Limit(first=first, lowest=8, highest=64, target_s=1.0)

    def learn(self, limit: Limit, seconds: float, *, at: float = 0.0, in_use: int = 64) -> float:
        limit.learn(weight=8, begun_at=at, ended_at=at + seconds, in_use=in_use)
        return limit.value

    def test_a_round_in_time_raises_it_by_one_generation(self) -> None:
        limit = self.limit()
        for _ in range(4):  # 32 candidates are four generations
            self.learn(limit, 0.5)
        assert limit.value == pytest.approx(40, abs=1)

    def test_it_never_rises_above_the_highest(self) -> None:
        limit = self.limit(64)
        assert self.learn(limit, 0.5) == 64

    def test_one_that_took_too_long_lowers_it_by_a_fifth(self) -> None:
        assert self.learn(self.limit(), 1.1) == pytest.approx(25.6)

    def test_one_fall_for_all_that_were_let_in_before_it(self) -> None:
        limit = self.limit()
        self.learn(limit, 1.2, at=0.0)
        assert self.learn(limit, 1.3, at=0.1) == pytest.approx(25.6)
        assert self.learn(limit, 1.3, at=1.3) == pytest.approx(20.48)

    def test_it_never_falls_below_one_generation(self) -> None:
        limit = self.limit()
        for i in range(50):
            self.learn(limit, 5.0, at=10.0 * i)
        assert limit.value == 8

    def test_a_limit_that_nobody_reaches_does_not_rise(self) -> None:
        assert self.learn(self.limit(), 0.1, in_use=8) == 32

    def test_one_that_was_broken_off_can_only_lower_it(self) -> None:
        limit = self.limit()
        limit.learn(weight=8, begun_at=0, ended_at=0.2, in_use=64, completed=False)
        assert limit.value == 32
        limit.learn(weight=8, begun_at=0, ended_at=1.2, in_use=64, completed=False)
        assert limit.value == pytest.approx(25.6)

    def test_the_lowest_is_no_higher_than_the_highest(self) -> None:
        assert Limit(first=32, lowest=8, highest=4, target_s=1).value == 4


class TestGate:
    def test_shoppers_may_use_all_of_the_limit(self, gate: Gate) -> None:
        assert len(fill(gate)) == 4
        assert gate.in_use == 32

    @pytest.mark.parametrize("kind", [k for k in Kind if k is not Kind.SHOPPER])
    def test_other_kinds_may_use_only_their_share(self, gate: Gate, kind: Kind) -> None:
        assert len(fill(gate, kind)) == int(4 * SHARES[kind])

    def test_what_is_already_under_way_counts_for_all_kinds(self, gate: Gate) -> None:
        gate.admit(8, Kind.SHOPPER)
        with pytest.raises(Overloaded):
            gate.admit(8, Kind.SHADOW)

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

    def test_what_nobody_waits_for_makes_room_longest_idle_first(
        self, gate: Gate, registry: CollectorRegistry
    ) -> None:
        permits = fill(gate)
        ended = []
        permits[2].idle(lambda: ended.append(2))
        permits[1].idle(lambda: ended.append(1))
        gate.admit(8, Kind.SHOPPER)
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

    def test_what_somebody_waits_for_again_is_spared(self, gate: Gate) -> None:
        permits = fill(gate)
        permits[0].idle(lambda: None)
        permits[0].wanted()
        with pytest.raises(Overloaded):
            gate.admit(8, Kind.SHOPPER)

    def test_one_that_was_evicted_after_the_target_lowers_the_limit(
        self, gate: Gate, clock: Clock
    ) -> None:
        """Else a limit far too high would never be found out: nothing would come to its end."""
        fill(gate)[0].idle(lambda: None)
        clock.now += 2.0
        with pytest.raises(Overloaded):  # the place is gone with the limit's fall
            gate.admit(8, Kind.SHOPPER)
        assert gate.limit == pytest.approx(25.6)

    def test_each_version_has_a_gate_of_its_own(self, registry: CollectorRegistry) -> None:
        admission = Admission(AdmissionMetrics(registry), highest=16, target_s=1.0)
        assert admission.gate("a", 8) is admission.gate("a", 8)
        fill(admission.gate("a", 8))
        admission.gate("b", 8).admit(8, Kind.SHOPPER)


class TestWaiting:
    async def test_batches_come_in_order_when_there_is_room(
        self, gate: Gate, registry: CollectorRegistry
    ) -> None:
        held = fill(gate)
        waiting = [asyncio.create_task(gate.wait(8, Kind.BATCH, 60.0)) for _ in range(3)]
        await asyncio.sleep(0)
        name, labels = "requery_admission_waiting", {"version": "v"}
        assert registry.get_sample_value(name, labels) == 3
        for permit in held:
            permit.release(completed=False)
        first, second = await asyncio.gather(*waiting[:2])
        assert first is not None
        assert second is not None
        assert gate.in_use == 16  # the third exceeds the share of batches
        assert not waiting[2].done()
        assert registry.get_sample_value(name, labels) == 1
        first.release(completed=True)
        assert await waiting[2] is not None

    async def test_at_once_if_there_is_room(self, gate: Gate) -> None:
        assert await gate.wait(8, Kind.BATCH, 0.0) is not None

    async def test_one_whose_time_is_over_leaves_the_queue_and_is_counted(
        self, gate: Gate, registry: CollectorRegistry
    ) -> None:
        held = fill(gate)
        assert await gate.wait(8, Kind.BATCH, 0.001) is None
        held[0].release(completed=True)
        assert gate.in_use == 24
        labels = {"version": "v", "kind": "batch"}
        assert registry.get_sample_value("requery_shed_total", labels) == 1

    async def test_one_that_is_cancelled_takes_no_place(self, gate: Gate) -> None:
        held = fill(gate)
        waiting = asyncio.create_task(gate.wait(8, Kind.BATCH, 60.0))
        await asyncio.sleep(0)
        for permit in held[:3]:
            permit.release(completed=False)
        waiting.cancel()  # in the turn in which it got its place
        await asyncio.gather(waiting, return_exceptions=True)
        assert gate.in_use == 8


def simulate(rate: float, *, seconds: float, deadline_s: float, limited: bool) -> tuple[float, int]:
    """An engine of 8 generations/s, however many share it, under Poisson arrivals.

    Each generation needs an eighth of a second of the engine, which is shared equally.

    Returns:
        generations that came within their deadline, a second; and how many were turned away.
    """
    clock, rng = Clock(), random.Random(5)
    clock.now = 0.0
    registry = CollectorRegistry()
    gate = Admission(
        AdmissionMetrics(registry),
        highest=512 if limited else 10**9,
        target_s=0.7 * deadline_s,
        clock=clock,
    ).gate("v", 8)
    arrival, shared = rng.expovariate(rate), 0.0
    running: list[tuple[float, float, Permit]] = []
    good = shed = 0
    while clock.now < seconds:
        # With processor sharing, one that needs w ends when the shared work has risen by w.
        ends = clock.now + (running[0][0] - shared) * len(running) if running else float("inf")
        at = min(ends, arrival)
        if running:
            shared += (at - clock.now) / len(running)
        clock.now = at
        if at == ends:
            _, begun, permit = heapq.heappop(running)
            good += at - begun <= deadline_s
            permit.release(completed=True)
        else:
            arrival = at + rng.expovariate(rate)
            try:
                permit = gate.admit(8, Kind.SHOPPER)
            except Overloaded:
                shed += 1
            else:
                heapq.heappush(running, (shared + 0.125, at, permit))
    return good / seconds, shed


class TestUnderOverload:
    """The learned limit on a simulated engine: no clock of the machine is involved."""

    def test_at_three_times_the_capacity_almost_all_of_it_is_good(self) -> None:
        goodput, shed = simulate(24.0, seconds=120, deadline_s=2.0, limited=True)
        assert goodput >= 0.9 * 8
        assert shed > 0

    def test_without_a_limit_next_to_nothing_would_be(self) -> None:
        goodput, _ = simulate(24.0, seconds=120, deadline_s=2.0, limited=False)
        assert goodput < 0.2 * 8

    def test_well_below_the_capacity_nothing_is_turned_away(self) -> None:
        goodput, shed = simulate(3.0, seconds=120, deadline_s=2.0, limited=True)
        assert shed == 0
        assert goodput == pytest.approx(3.0, rel=0.15)
