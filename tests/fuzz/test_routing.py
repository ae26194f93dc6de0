"""Assignment of units to arms, for any plan and any unit."""

from __future__ import annotations

import math
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from service.routing.document import SHARE_TOLERANCE, Routing
from service.routing.router import Router
from tests.fuzz.profile import fuzzed
from tests.fuzz.strategies import json_values, texts

NAMES = [f"v-{i}" for i in range(6)]
UNITS = [f"u-{i}" for i in range(3000)]


class Plan:
    """A routing document that stays as it is."""

    def __init__(self, weights: dict[str, float], salt: str = "s") -> None:
        self.value = Routing(default="v-0", weights=weights, salt=salt)
        self.revision = 1


@st.composite
def weights(draw: st.DrawFn) -> dict[str, float]:
    raw = draw(st.dictionaries(st.sampled_from(NAMES), st.integers(0, 20), min_size=1))
    total = sum(raw.values())
    assume(total)
    return {name: share / total for name, share in raw.items()}


def arms(shares: dict[str, float], units: list[str], salt: str = "s") -> list[str]:
    router = Router(Plan(shares, salt))
    return [router.assign(pin=None, unit_id=unit).version for unit in units]


@fuzzed
@given(weights())
def test_shares_are_kept(shares: dict[str, float]) -> None:
    found = arms(shares, UNITS)
    for name, share in shares.items():
        # Six standard deviations, and the units are fixed: what passes once passes always.
        slack = 6 * math.sqrt(share * (1 - share) / len(UNITS)) + 1e-9
        assert abs(found.count(name) / len(UNITS) - share) <= slack
    assert set(found) <= {name for name, share in shares.items() if share > 0}


@fuzzed
@given(weights(), weights())
def test_units_go_only_to_arms_that_gained_on_theirs(
    before: dict[str, float], after: dict[str, float]
) -> None:
    for old, new in zip(arms(before, UNITS[:400]), arms(after, UNITS[:400]), strict=True):
        if old != new:
            # w_new'/w_new > w_old'/w_old, without dividing by shares that are 0.
            gained = after[new] * before[old]
            lost = after.get(old, 0.0) * before.get(new, 0.0)
            assert gained > lost or math.isclose(gained, lost)


@fuzzed
@given(weights(), st.lists(texts.filter(bool), max_size=10), texts.filter(str.isprintable))
def test_an_arm_is_a_function_of_unit_and_salt(
    shares: dict[str, float], units: list[str], salt: str
) -> None:
    salt = salt[:64] if salt.strip() and salt[:64].strip() else "s"
    first = arms(shares, units, salt)
    shuffled = dict(reversed(shares.items()))
    assert arms(shuffled, units[::-1], salt)[::-1] == first
    assert [arms(shares, [unit], salt)[0] for unit in units] == first


@fuzzed
@given(json_values | st.fixed_dictionaries({"default": st.just("a"), "weights": json_values}))
def test_any_stored_document_is_refused_or_a_plan(body: Any) -> None:
    try:
        plan = Routing.parse(body)
    except ValueError:
        return
    assert not plan.weights or abs(math.fsum(plan.weights.values()) - 1) <= SHARE_TOLERANCE
    assert Routing.parse(plan.dump()) == plan
