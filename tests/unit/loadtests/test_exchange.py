from __future__ import annotations

from typing import Any

import pytest

from loadtests.exchange import Failure
from tests.unit.loadtests.outcomes import outcome


@pytest.mark.parametrize(
    ("fields", "useful", "good", "late"),
    [
        *(({"status": status}, True, True, False) for status in ("ok", "none", "partial", "")),
        *(({"status": status}, False, False, False) for status in ("timeout", "fallback")),
        *(({"code": code}, False, False, False) for code in (503, 500, 404, 422)),
        ({"code": 0, "failure": Failure.REFUSED}, False, False, False),
        ({"latency": 1.04}, True, True, False),
        ({"latency": 1.06}, True, False, True),
        ({"latency": 9.0, "code": 0, "failure": Failure.LEFT}, False, False, False),
        ({"latency": 9.0, "code": 0, "failure": Failure.UNANSWERED}, False, False, True),
    ],
    ids=str,
)
def test_good_is_a_useful_answer_until_the_deadline_and_the_grace(
    fields: dict[str, Any], useful: bool, good: bool, late: bool
) -> None:
    one = outcome(**fields)
    assert (one.useful(), one.good(0.05), one.late(0.05)) == (useful, good, late)


def test_latency_counts_from_when_a_request_was_due() -> None:
    held_up = outcome(due=5.0, sent=7.0, latency=2.1)
    assert held_up.latency == pytest.approx(2.1)
    assert held_up.lag == pytest.approx(2.0)
    assert held_up.over_deadline == pytest.approx(1.1)
