from __future__ import annotations

import pytest

from loadtests.exchange import Failure
from tests.unit.loadtests.outcomes import outcome


@pytest.mark.parametrize("status", ["ok", "none", "partial", ""])
def test_what_a_search_page_can_use_is_good(status: str) -> None:
    assert outcome(status=status).good()


@pytest.mark.parametrize("status", ["timeout", "fallback"])
def test_an_answer_that_says_there_is_none_is_not(status: str) -> None:
    assert not outcome(status=status).good()


@pytest.mark.parametrize("code", [503, 500, 404, 422])
def test_an_error_is_not(code: int) -> None:
    assert not outcome(code=code, status="overloaded").good()


def test_no_answer_is_not() -> None:
    assert not outcome(code=0, status="", failure=Failure.REFUSED).good()


def test_an_answer_counts_until_its_deadline_and_the_grace() -> None:
    assert outcome(latency=1.04).good(0.05)
    assert not outcome(latency=1.06).good(0.05)
    assert not outcome(latency=1.04).good(0.0)
    assert outcome(latency=1.06).useful()
    assert outcome(latency=1.06).late(0.05)
    assert not outcome(latency=1.04).late(0.05)


def test_latency_counts_from_when_it_was_due_not_from_when_it_was_sent() -> None:
    held_up = outcome(due=5.0, sent=7.0, latency=2.1)
    assert held_up.latency == pytest.approx(2.1)
    assert held_up.lag == pytest.approx(2.0)
    assert held_up.over_deadline == pytest.approx(1.1)
    assert not held_up.good()


def test_who_hangs_up_is_not_kept_waiting() -> None:
    assert not outcome(latency=9.0, failure=Failure.LEFT, code=0).late()
    assert outcome(latency=9.0, failure=Failure.UNANSWERED, code=0).late()
