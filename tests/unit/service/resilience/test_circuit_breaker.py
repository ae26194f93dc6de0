"""The circuit breaker, by a clock that the test moves."""

from __future__ import annotations

from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from service.resilience.circuit_breaker import Breaker
from service.resilience.metrics import STATES, BreakerMetrics


class World:
    """A breaker that waits exactly as long as it says, unless a test wants chance."""

    def __init__(self, **options: Any) -> None:
        self.now = 1000.0
        self.registry = CollectorRegistry()
        self.breaker = Breaker(
            "redis",
            BreakerMetrics(self.registry),
            clock=lambda: self.now,
            **({"draw": lambda: 0.0} | options),
        )

    def tell(self, outcomes: str) -> None:
        """One call for each character: ``+`` went well, ``-`` did not."""
        for outcome in outcomes:
            assert self.breaker.allow()
            (self.breaker.succeeded if outcome == "+" else self.breaker.failed)()

    @property
    def state(self) -> str:
        return self.breaker.state

    def waits_out(self) -> float:
        """Let the wait pass; its length."""
        waited = self.breaker.wait_left_s
        self.now += waited
        return waited

    def sample(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"requery_breaker_{name}", {"name": "redis"} | labels)

    def shown(self) -> dict[str, float | None]:
        return {state: self.sample("state", state=state) for state in STATES}


@pytest.mark.parametrize(
    ("outcomes", "state"),
    [
        ("----", "closed"),
        ("-----", "open"),
        ("----+---", "open"),  # 7 of 8
        ("+++++-----", "open"),
        ("+-+-+-+", "closed"),  # too few to speak of a share
        ("+-+-+-+-", "open"),  # 4 of 8
        ("++-" * 20, "closed"),
        ("+" * 8 + "-+-+-+-", "closed"),
        ("+" * 8 + "--+--+-+--", "closed"),  # 7 of the last 16
        ("+" * 8 + "--+--+-+---", "open"),  # 8 of the last 16
    ],
)
def test_it_opens_at_faults_in_a_row_or_at_a_share_of_the_last_ones(
    outcomes: str, state: str
) -> None:
    world = World()
    world.tell(outcomes)
    assert world.state == state


def test_while_it_is_open_calls_are_refused_and_counted() -> None:
    world = World()
    world.tell("-----")
    assert [world.breaker.allow() for _ in range(7)] == [False] * 7
    assert world.sample("refused_total") == 7
    world.now += 0.99
    assert not world.breaker.allow()
    world.now += 0.02
    assert world.breaker.allow()


def test_after_the_wait_calls_are_tried_one_at_a_time_until_enough_went_well() -> None:
    world = World(good=2)
    world.tell("-----")
    world.waits_out()
    assert world.state == "open"
    assert [world.breaker.allow() for _ in range(3)] == [True, False, False]
    assert world.state == "half_open"
    world.breaker.succeeded()
    assert [world.breaker.allow() for _ in range(3)] == [True, False, False]
    world.breaker.succeeded()
    assert world.state == "closed"
    assert world.breaker.allow()
    assert world.breaker.allow()


def test_what_may_not_be_a_trial_is_refused_until_it_is_closed() -> None:
    world = World(good=2)
    world.tell("-----")
    world.waits_out()
    assert not world.breaker.allow(trial=False)
    assert world.state == "open"
    world.tell("+")
    assert not world.breaker.allow(trial=False)
    world.tell("+")
    assert world.breaker.allow(trial=False)


def test_one_trial_that_fails_opens_it_again_for_longer() -> None:
    world = World(good=3)
    world.tell("-----")
    world.waits_out()
    world.tell("++-")
    assert world.state == "open"
    assert world.waits_out() == 2
    # What went well before does not count any more.
    world.tell("++")
    assert world.state == "half_open"
    world.tell("+")
    assert world.state == "closed"


def test_the_wait_doubles_up_to_its_bound() -> None:
    world = World(wait_s=1.0, longest_wait_s=30.0)
    world.tell("-----")
    waits = []
    for _ in range(8):
        waits.append(world.waits_out())
        world.tell("-")
    assert waits == [1, 2, 4, 8, 16, 30, 30, 30]


def test_a_breaker_that_keeps_opening_waits_longer_and_one_that_held_does_not() -> None:
    world = World(wait_s=1.0, longest_wait_s=30.0)
    world.tell("-----")
    waits = []
    for closed_for in (0, 29, 31):
        waits.append(world.waits_out())
        world.tell("+")
        assert world.breaker.closed
        world.now += closed_for
        world.tell("-----")
    waits.append(world.waits_out())
    assert waits == [1, 2, 4, 1]


def test_a_breaker_that_was_open_for_hours_still_knows_numbers() -> None:
    world = World()
    world.tell("-----")
    for _ in range(3000):
        world.waits_out()
        world.tell("-")
    assert world.breaker.wait_left_s == 30


@given(st.floats(0, 1, exclude_max=True))
def test_chance_cuts_a_wait_short_by_a_quarter_at_most(drawn: float) -> None:
    world = World(draw=lambda: drawn)
    world.tell("-----")
    assert 0.75 <= world.breaker.wait_left_s <= 1.0
    # Seconds of a clock are not told apart any finer.
    assert world.breaker.wait_left_s == pytest.approx(1 - drawn / 4, abs=1e-9)


def test_a_trial_of_which_nothing_is_heard_does_not_keep_it_open_for_ever() -> None:
    world = World(longest_wait_s=30.0)
    world.tell("-----")
    world.waits_out()
    assert world.breaker.allow()
    world.now += 29
    assert not world.breaker.allow()
    world.now += 2
    assert world.breaker.allow()


def test_a_trial_that_was_given_up_makes_room_for_the_next() -> None:
    world = World()
    world.tell("-----")
    world.waits_out()
    assert world.breaker.allow()
    world.breaker.cancelled()
    assert world.state == "half_open"
    world.tell("+")
    assert world.breaker.closed


def test_what_was_under_way_when_it_opened_changes_nothing() -> None:
    world = World()
    world.tell("-----")
    left = world.breaker.wait_left_s
    world.breaker.succeeded()
    world.breaker.failed()
    world.breaker.cancelled()
    assert (world.state, world.breaker.wait_left_s) == ("open", left)


def test_it_begins_anew_when_it_closes() -> None:
    world = World()
    world.tell("+-+-+-+-")
    world.waits_out()
    world.tell("+")
    world.tell("----")
    assert world.breaker.closed
    world.tell("-")
    assert not world.breaker.closed


def test_metrics_show_one_state_and_count_the_changes() -> None:
    world = World(good=2)
    assert world.shown() == {"closed": 1, "open": 0, "half_open": 0}
    assert world.sample("transitions_total", to="open") == 0
    assert world.sample("refused_total") == 0
    world.tell("-----")
    assert world.shown() == {"closed": 0, "open": 1, "half_open": 0}
    world.waits_out()
    world.tell("+")
    assert world.shown() == {"closed": 0, "open": 0, "half_open": 1}
    world.tell("+")
    assert world.shown() == {"closed": 1, "open": 0, "half_open": 0}
    assert {to: world.sample("transitions_total", to=to) for to in STATES} == {
        "closed": 1, "open": 1, "half_open": 1,
    }  # fmt: skip


def test_a_breaker_needs_no_metrics() -> None:
    breaker = Breaker("alone", in_a_row=1)
    breaker.failed()
    assert not breaker.allow()


def test_opening_and_closing_are_a_line_each_and_no_more_when_it_flaps() -> None:
    world = World()
    with structlog.testing.capture_logs() as lines:
        world.tell("-----")
        for _ in range(3):
            world.waits_out()
            world.tell("-")
        world.waits_out()
        world.tell("+")
    assert [line["event"] for line in lines] == ["breaker_opened", "breaker_closed"]
    assert lines[0]["name"] == "redis"
    with structlog.testing.capture_logs() as lines:
        for _ in range(2):
            world.tell("-----")
            world.waits_out()
            world.tell("+")
    assert len(lines) <= 2


@given(
    st.lists(
        st.sampled_from(["allow", "ask", "succeeded", "failed", "cancelled", "wait", "later"]),
        max_size=200,
    )
)
def test_whatever_happens_exactly_one_state_is_shown_and_a_trial_comes_in_the_end(
    steps: list[str],
) -> None:
    world = World()
    for step in steps:
        if step == "wait":
            world.waits_out()
        elif step == "later":
            world.now += 0.3
        elif step == "ask":
            world.breaker.allow(trial=False)
        else:
            getattr(world.breaker, step)()
        assert world.shown() == {state: state == world.state for state in STATES}
        assert 0 <= world.breaker.wait_left_s <= 30
    world.waits_out()
    assert world.breaker.allow()
