from __future__ import annotations

import math
import random
from collections.abc import Callable, Generator
from typing import Any

import pytest
import simpy
from simpy.events import Event

from loadtests.capacity.queueing import erlang_b, most_load

ARRIVALS = 40_000


def test_erlangs_formula_by_hand() -> None:
    # One permit: B = a / (1 + a). Two: B = (a^2 / 2) / (1 + a + a^2 / 2).
    assert erlang_b(1, 0.5) == pytest.approx(0.5 / 1.5)
    assert erlang_b(2, 1.0) == pytest.approx(0.5 / 2.5)
    total = sum(8.0**k / math.factorial(k) for k in range(11))
    assert erlang_b(10, 8.0) == pytest.approx(8.0**10 / math.factorial(10) / total)


@pytest.mark.parametrize("permits", [1, 6, 40])
def test_the_most_load_is_the_inverse_of_b(permits: int) -> None:
    assert erlang_b(permits, most_load(permits, turned_away=0.01)) == pytest.approx(0.01)


def simulated(
    permits: int, arrivals_per_s: float, service_s: Callable[[random.Random], float]
) -> float:
    """Share that is turned away by an engine under Poisson arrivals."""
    source = random.Random(0)
    environment = simpy.Environment()
    engine = simpy.Resource(environment, capacity=permits)
    turned_away = 0

    def generation() -> Generator[Event, Any, None]:
        with engine.request() as permit:
            yield permit
            yield environment.timeout(service_s(source))

    def shoppers() -> Generator[Event, Any, None]:
        nonlocal turned_away
        for _ in range(ARRIVALS):
            yield environment.timeout(source.expovariate(arrivals_per_s))
            if engine.count >= permits:
                turned_away += 1
            else:
                environment.process(generation())

    environment.process(shoppers())
    environment.run()
    return turned_away / ARRIVALS


@pytest.mark.parametrize("service", [lambda source: source.expovariate(1 / 1.4), lambda _: 1.4])
def test_simulated_losses_are_erlangs_b_whatever_the_distribution(
    service: Callable[[random.Random], float],
) -> None:
    assert simulated(6, 4.0 / 1.4, service) == pytest.approx(erlang_b(6, 4.0), abs=0.015)
