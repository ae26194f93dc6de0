"""When requests are due: Poisson arrivals, fixed before the first one is sent.

Arrivals do not wait for answers (an open loop): shoppers do not either. A server that slows down
keeps getting requests at the same rate, and its queues show in the latencies.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MAX_SECONDS = 6 * 3600.0
"""Longest that a run may be planned to take: nothing is left running by mistake."""


@dataclass(frozen=True, slots=True)
class Phase:
    """A stretch of a run.

    Args:
        name: what its arrivals are labelled with.
        rate: arrivals a second, on average; 0 is a pause.
        seconds: how long it lasts.

    Raises:
        ValueError: a figure is negative.
    """

    name: str
    rate: float
    seconds: float

    def __post_init__(self) -> None:
        if self.rate < 0 or self.seconds < 0:
            raise ValueError(f"phase {self.name}: neither rate nor time can be negative")


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request to come.

    Attributes:
        due: seconds since the start of the run.
        phase: name of the phase that it belongs to.
    """

    due: float
    phase: str


def poisson(phases: Sequence[Phase], *, seed: int) -> Iterator[Arrival]:
    """Arrivals of ``phases``, one after the other; the same for the same seed.

    Raises:
        ValueError: they would take longer than :data:`MAX_SECONDS`.
    """
    total = sum(phase.seconds for phase in phases)
    if total > MAX_SECONDS:
        raise ValueError(f"a run of {total:.0f} s is too long; at most {MAX_SECONDS:.0f} s")
    return _poisson(phases, random.Random(seed))


def _poisson(phases: Sequence[Phase], rng: random.Random) -> Iterator[Arrival]:
    begin = 0.0
    for phase in phases:
        end = begin + phase.seconds
        due = begin
        while phase.rate > 0 and (due := due + rng.expovariate(phase.rate)) < end:
            yield Arrival(due, phase.name)
        begin = end
