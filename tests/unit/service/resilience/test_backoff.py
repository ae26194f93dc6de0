from __future__ import annotations

from service.resilience.backoff import Backoff


def test_waits_double_up_to_a_bound_and_start_over_after_success() -> None:
    now = 0.0
    backoff = Backoff(5.0, 30.0, lambda: now)
    assert backoff.due("x")
    waits = []
    for _ in range(5):
        backoff.failed("x")
        start = now
        while not backoff.due("x"):
            now += 1.0
        waits.append(now - start)
    assert waits == [5, 10, 20, 30, 30]
    assert backoff.due("y")
    backoff.forget("x")
    backoff.failed("x")
    now += 5.0
    assert backoff.due("x")
