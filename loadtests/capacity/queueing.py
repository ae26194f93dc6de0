"""How full an engine may be: closed forms, and a simulation of what they leave out.

An engine has places for so many generations at a time. The service turns a shopper away when all
are taken (a loss system, Erlang B); batches wait (Erlang C).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator
from dataclasses import dataclass
from math import exp
from typing import Any

import simpy
from simpy.events import Event


def erlang_b(places: int, load: float) -> float:
    """Share that is turned away: M/G/c/c.

    Args:
        places: generations at a time.
        load: arrivals a second times seconds of each, in erlangs.
    """
    blocked = 1.0
    for n in range(1, places + 1):
        blocked = load * blocked / (n + load * blocked)
    return blocked


def erlang_c(places: int, load: float) -> float:
    """Share that must wait when all may: M/M/c; 1 if there is more to do than can be done."""
    if load >= places:
        return 1.0
    blocked = erlang_b(places, load)
    return places * blocked / (places - load * (1 - blocked))


def waits_longer(places: int, load: float, *, service_s: float, than_s: float) -> float:
    """Share that waits longer than ``than_s`` seconds in M/M/c, first come, first served."""
    if load >= places:
        return 1.0
    return erlang_c(places, load) * exp(-(places - load) * than_s / service_s)


def most_load(places: int, *, turned_away: float) -> float:
    """The load in erlangs of which at most a share ``turned_away`` finds all places taken."""
    low, high = 0.0, float(places)
    while erlang_b(places, high) < turned_away:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        if erlang_b(places, middle) > turned_away:
            high = middle
        else:
            low = middle
    return low


@dataclass(frozen=True, slots=True)
class Served:
    """What became of simulated arrivals.

    Attributes:
        arrivals: how many there were.
        turned_away: found no place, and did not wait.
        waited: had to wait for a place, of those let in.
        late: were not done by their deadline, of those let in.
    """

    arrivals: int
    turned_away: int
    waited: int
    late: int


def simulate(
    *,
    places: int,
    arrivals_per_s: float,
    service_s: Callable[[random.Random], float],
    arrivals: int,
    wait: bool = False,
    deadline_s: float = float("inf"),
    seed: int = 0,
) -> Served:
    """One engine under Poisson arrivals.

    Args:
        places: generations at a time.
        arrivals_per_s: of misses.
        service_s: draws how long one takes.
        arrivals: how many to simulate.
        wait: whether they wait for a place (batches), or are turned away (shoppers).
        deadline_s: from arrival, for what counts as late.
        seed: of every draw.
    """
    source = random.Random(seed)
    environment = simpy.Environment()
    engine = simpy.Resource(environment, capacity=places)
    turned_away = waited = late = 0

    def generation() -> Generator[Event, Any, None]:
        nonlocal turned_away, waited, late
        begun = environment.now
        full = engine.count >= places
        if full and not wait:
            turned_away += 1
            return
        waited += full
        with engine.request() as place:
            yield place
            yield environment.timeout(service_s(source))
        late += environment.now - begun > deadline_s

    def shoppers() -> Generator[Event, Any, None]:
        for _ in range(arrivals):
            yield environment.timeout(source.expovariate(arrivals_per_s))
            environment.process(generation())

    environment.process(shoppers())
    environment.run()
    return Served(arrivals, turned_away, waited, late)
