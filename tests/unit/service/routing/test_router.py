"""Routing: the document's rules, and who is assigned where."""

from __future__ import annotations

import math
import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import ValidationError

from service.routing.document import Kill, Routing, RoutingPlan, ShadowTraffic
from service.routing.router import Router

UNITS = [f"unit-{i}" for i in range(20_000)]
SIGMAS = 5
"""Width of the intervals: the units are fixed, so a test that passes once passes always."""


@dataclass
class Now:
    """A routing document that is what the test says."""

    value: Routing
    revision: int = 7


def routing(weights: dict[str, float] | None = None, **fields: Any) -> Routing:
    return Routing.parse({"default": "v0", "weights": weights or {}, "salt": "s"} | fields)


def router(weights: dict[str, float] | None = None, **fields: Any) -> Router:
    return Router(Now(routing(weights, **fields)))


def arms(weights: dict[str, float], *, salt: str = "s") -> list[str]:
    """The arm of each unit."""
    assign = router(weights, salt=salt).assign
    return [assign(pin=None, unit_id=unit).version for unit in UNITS]


def near(count: int, share: float, n: int = len(UNITS)) -> bool:
    """Whether ``count`` of ``n`` lies in the binomial interval of ``share``."""
    return abs(count - n * share) <= SIGMAS * math.sqrt(n * share * (1 - share))


def moves(before: dict[str, float], after: dict[str, float]) -> Counter[tuple[str, str]]:
    pairs = zip(arms(before), arms(after), strict=True)
    return Counter(pair for pair in pairs if pair[0] != pair[1])


def test_sequential_ids_are_split_like_random_ones() -> None:
    assign = router({"a": 0.5, "b": 0.5}).assign
    rng = random.Random(3)
    units = [f"{rng.getrandbits(128):032x}" for _ in range(len(UNITS))]
    assert near(sum(assign(pin=None, unit_id=u).version == "a" for u in units), 0.5)


def test_assignments_are_independent_across_salts() -> None:
    weights = {"a": 0.5, "b": 0.5}
    joint = Counter(zip(arms(weights, salt="one"), arms(weights, salt="two"), strict=True))
    expected = len(UNITS) / 4
    chi_square = sum((joint[x, y] - expected) ** 2 / expected for x in "ab" for y in "ab")
    assert chi_square < 21.1  # 0.9999 quantile for 3 degrees of freedom


def test_assignments_are_independent_of_which_arms_there_are_elsewhere() -> None:
    joint = Counter(zip(arms({"a": 0.5, "b": 0.5}), arms({"c": 0.5, "d": 0.5}), strict=True))
    assert near(joint["a", "c"], 0.25)
    assert near(joint["b", "d"], 0.25)


def test_fifty_fifty_to_sixty_forty_moves_a_tenth_of_the_units_and_one_way_only() -> None:
    moved = moves({"a": 0.5, "b": 0.5}, {"a": 0.6, "b": 0.4})
    assert set(moved) == {("b", "a")}
    assert near(moved["b", "a"], 0.1)


def test_an_arm_that_is_added_takes_units_and_no_other_unit_moves() -> None:
    moved = moves({"a": 0.5, "b": 0.5}, {"a": 0.4, "b": 0.4, "c": 0.2})
    assert {to for _, to in moved} == {"c"}
    assert near(moved["a", "c"], 0.1)
    assert near(moved["b", "c"], 0.1)


def test_with_three_arms_units_move_as_the_documentation_says() -> None:
    before, after = {"a": 0.5, "b": 0.3, "c": 0.2}, {"a": 0.6, "b": 0.3, "c": 0.1}
    moved = moves(before, after)
    stay = sum(
        1 / sum(max(before[j] / before[i], after[j] / after[i]) for j in before) for i in before
    )
    assert near(moved.total(), 1 - stay)
    assert near(moved.total(), 0.127)
    grew = {arm: after[arm] / before[arm] for arm in before}
    assert all(grew[to] > grew[source] for source, to in moved)


def test_the_assignment_of_known_units_never_changes_silently() -> None:
    # Whoever changes the hash moves all units of all running experiments.
    assign = router({"a": 0.5, "b": 0.3, "c": 0.2}, salt="pinned").assign
    units = [*(f"u-{i}" for i in range(20)), "ünit", "用户42", "\ud800", " "]
    assert (
        "".join(assign(pin=None, unit_id=unit).version for unit in units)
        == "bbabaaaabaaacbabaacabbaa"
    )


def test_units_are_compared_code_point_by_code_point() -> None:
    composed = [f"é{i}" for i in range(200)]
    decomposed = [f"e\u0301{i}" for i in range(200)]
    assign = router({"a": 0.5, "b": 0.5}).assign
    assert [assign(pin=None, unit_id=u).arm for u in composed] != [
        assign(pin=None, unit_id=u).arm for u in decomposed
    ]


SAFE: dict[str, Any] = {"kill": {"version": "safe", "reason": "bad rewrites"}}
OFF: dict[str, Any] = {"kill": {"version": None, "reason": "all bad"}}


@pytest.mark.parametrize(
    ("weights", "fields", "pin", "unit", "expected"),
    [
        ({"a": 1.0}, {}, None, None, ("v0", "default", False)),
        ({"a": 1.0}, {}, None, "", ("v0", "default", False)),
        ({}, {}, None, "u-1", ("v0", "default", False)),
        ({"a": 1.0}, {}, "v9", "u-1", ("v9", "pin", False)),
        ({"a": 1.0}, SAFE, None, "u-1", ("safe", "kill", False)),
        ({"a": 1.0}, SAFE, "v9", "u-1", ("safe", "kill", False)),
        ({"a": 1.0}, OFF, None, "u-1", ("v0", "kill", True)),
    ],
)
def test_the_kill_switch_goes_before_a_pin_and_a_pin_before_the_weights(
    weights: dict[str, float],
    fields: dict[str, Any],
    pin: str | None,
    unit: str | None,
    expected: tuple[str, str, bool],
) -> None:
    found = router(weights, **fields).assign(pin=pin, unit_id=unit)
    assert (found.version, found.why, found.off) == expected
    assert found.arm is None


@pytest.mark.parametrize("pin", [None, "v9"])
@pytest.mark.parametrize("shared", [None, {"version": "safe", "reason": "bad rewrites"}])
def test_the_switch_of_this_replica_goes_before_everything(
    pin: str | None, shared: dict[str, Any] | None
) -> None:
    live = router({"a": 1.0}, kill=shared)
    before = live.assign(pin=pin, unit_id="u-1")
    live.kill_locally(Kill(version="here", reason="no Redis"))
    found = live.assign(pin=pin, unit_id="u-1")
    assert (found.version, found.arm, found.why, found.off) == ("here", None, "kill", False)
    assert found.revision == before.revision
    live.kill_locally(Kill(version=None, reason="no Redis"))
    found = live.assign(pin=pin, unit_id="u-1")
    assert (found.version, found.why, found.off) == ("v0", "kill", True)
    live.kill_locally(None)
    assert live.assign(pin=pin, unit_id="u-1") == before


def test_the_switch_of_this_replica_stays_on_when_the_document_changes() -> None:
    now = Now(routing({"a": 1.0}), 1)
    live = Router(now)
    live.kill_locally(Kill(version=None, reason="no Redis"))
    assert live.assign(pin=None, unit_id="u").off
    now.value, now.revision = routing({"b": 1.0}, default="v1"), 2
    found = live.assign(pin=None, unit_id="u")
    assert (found.version, found.off, found.revision) == ("v1", True, 2)


def test_a_change_of_the_document_is_followed_at_once() -> None:
    now = Now(routing({"a": 1.0}), 1)
    live = Router(now)
    assert live.assign(pin=None, unit_id="u").version == "a"
    now.value, now.revision = routing({"b": 1.0}, salt="new"), 2
    found = live.assign(pin=None, unit_id="u")
    assert (found.version, found.revision, found.salt) == ("b", 2, "new")


def test_shadow_traffic_stops_while_the_kill_switch_is_on() -> None:
    shadow = {"version": "v1", "share": 0.1}
    assert router(shadow=shadow).shadow() == ShadowTraffic(version="v1", share=0.1)
    assert router(shadow=shadow, kill={"version": None, "reason": "x"}).shadow() is None
    live = router(shadow=shadow)
    live.kill_locally(Kill(version="v1", reason="x"))
    assert live.shadow() is None


def test_a_document_is_stored_and_read_unchanged() -> None:
    full = routing(
        {"a": 0.25, "b": 0.75},
        shadow={"version": "c", "share": 0.5},
        kill={"version": None, "reason": "stop"},
    )
    assert Routing.parse(full.dump()) == full


def test_a_new_plan_leaves_the_kill_switch_alone() -> None:
    killed = routing({"a": 1.0}, kill={"version": "a", "reason": "stop"})
    plan = RoutingPlan(default="v2", weights={}, salt="t")
    planned = killed.plan(plan)
    assert (planned.default, planned.kill) == ("v2", Kill(version="a", reason="stop"))
    assert planned.killed(None).kill is None


def test_shares_may_miss_one_by_rounding() -> None:
    third = round(1 / 3, 7)
    assert routing({"a": third, "b": third, "c": third}).weights["a"] == third


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"weights": {"a": 0.5, "b": 0.4}}, ("weights",)),
        ({"weights": {"a": 0.500002, "b": 0.5}}, ("weights",)),
        ({"weights": {"a": 1.5, "b": -0.5}}, ("weights", "a")),
        ({"weights": {"a": math.nan}}, ("weights", "a")),
        ({"weights": {"A b": 1.0}}, ("weights", "A b", "[key]")),
        ({"weights": {f"v{i}": 1 / 64 for i in range(64)}}, ("weights",)),
        ({"weights": {"a": "1"}}, ("weights", "a")),
        ({"salt": ""}, ("salt",)),
        ({"salt": " "}, ("salt",)),
        ({"salt": "x" * 65}, ("salt",)),
        ({"salt": "a\nb"}, ("salt",)),
        ({"salt": "a\0b"}, ("salt",)),
        ({"default": ""}, ("default",)),
        ({"default": None}, ("default",)),
        ({"shadow": {"version": "a", "share": 1.1}}, ("shadow", "share")),
        ({"shadow": {"version": "a"}}, ("shadow", "share")),
        ({"kill": {"version": "a"}}, ("kill", "reason")),
        ({"kill": {"reason": "x"}}, ("kill", "version")),
        ({"wieghts": {}}, ("wieghts",)),
    ],
)
def test_a_document_that_makes_no_sense_is_refused(
    fields: dict[str, Any], where: tuple[str, ...]
) -> None:
    with pytest.raises(ValidationError) as caught:
        routing(**fields)
    assert caught.value.errors()[0]["loc"] == where
