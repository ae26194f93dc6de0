from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest

from loadtests.capacity.queueing import erlang_b, erlang_c, most_load, simulate, waits_longer

ARRIVALS = 40_000


def exponential(mean: float) -> Callable[[random.Random], float]:
    return lambda source: source.expovariate(1 / mean)


def test_erlangs_formulas_by_hand() -> None:
    # One place: B = a / (1 + a), C = a. Two: B = (a^2 / 2) / (1 + a + a^2 / 2).
    assert erlang_b(1, 0.5) == pytest.approx(0.5 / 1.5)
    assert erlang_c(1, 0.5) == pytest.approx(0.5)
    assert erlang_b(2, 1.0) == pytest.approx(0.5 / 2.5)
    assert erlang_c(2, 1.0) == pytest.approx(1 / 3)
    total = sum(8.0**k / math.factorial(k) for k in range(11))
    assert erlang_b(10, 8.0) == pytest.approx(8.0**10 / math.factorial(10) / total)


def test_more_than_can_be_done_makes_everybody_wait() -> None:
    assert erlang_c(3, 3.0) == 1.0
    assert waits_longer(3, 3.5, service_s=1.0, than_s=100.0) == 1.0


def test_the_most_load_is_the_inverse_of_b() -> None:
    for places in (1, 6, 40):
        assert erlang_b(places, most_load(places, turned_away=0.01)) == pytest.approx(0.01)


@pytest.mark.parametrize(("places", "load"), [(1, 0.5), (6, 4.0)])
def test_simulated_waiting_is_erlangs_c(places: int, load: float) -> None:
    found = simulate(
        places=places, arrivals_per_s=load / 1.4, service_s=exponential(1.4), arrivals=ARRIVALS,
        wait=True,
    )  # fmt: skip
    assert found.turned_away == 0
    assert found.waited / found.arrivals == pytest.approx(erlang_c(places, load), abs=0.02)


@pytest.mark.parametrize("service", [exponential(1.4), lambda _: 1.4])
def test_simulated_losses_are_erlangs_b_whatever_the_distribution(
    service: Callable[[random.Random], float],
) -> None:
    found = simulate(places=6, arrivals_per_s=4.0 / 1.4, service_s=service, arrivals=ARRIVALS)
    assert found.waited == 0
    assert found.turned_away / found.arrivals == pytest.approx(erlang_b(6, 4.0), abs=0.015)


def test_simulated_lateness_of_one_place_is_that_of_its_closed_form() -> None:
    # M/M/1: time in the system is exponential with the rate mu - lambda.
    found = simulate(
        places=1, arrivals_per_s=0.5, service_s=exponential(1.0), arrivals=ARRIVALS, wait=True,
        deadline_s=3.0,
    )  # fmt: skip
    assert found.late / found.arrivals == pytest.approx(math.exp(-0.5 * 3.0), abs=0.03)
    assert waits_longer(1, 0.5, service_s=1.0, than_s=2.0) == pytest.approx(0.5 * math.exp(-1.0))
