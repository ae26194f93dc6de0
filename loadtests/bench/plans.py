"""How long and how much each part of the benchmark measures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

WORK = Path("build/loadtests")
"""What the benchmark makes and keeps: versions, LiteLLM's environment, logs, results."""
BATCH_CALLERS = 16
"""Callers at a time, where more than one ask."""
CANDIDATES = 4
"""Candidates of each miss."""


@dataclass(frozen=True, slots=True)
class HitsPlan:
    """Hits.

    Attributes:
        known: queries that are in the cache.
        draws: requests prepared for a load generator, drawn from them by Zipf's law.
        connections: kept busy by the load generator.
        seconds: of each measurement of throughput.
        warm_s: before it, not measured.
        open_s: of each measurement of latency, at a fixed rate.
        rounds: of all servers in turn.
        load_share: rate of the measurements of latency, as a share of the bare route's throughput.
        litellm: whether LiteLLM's proxy is installed and measured.
    """

    known: int = 200
    draws: int = 10_000
    connections: int = 16
    seconds: float = 10.0
    warm_s: float = 2.0
    open_s: float = 20.0
    rounds: int = 5
    load_share: float = 0.5
    litellm: bool = True

    def quick(self) -> HitsPlan:
        """Short, to see that it works; its figures say nothing."""
        return replace(self, known=6, draws=200, seconds=1.5, warm_s=0.5, open_s=2.0, rounds=1)


@dataclass(frozen=True, slots=True)
class MissesPlan:
    """Misses.

    Attributes:
        single, batch: queries of one turn with one caller and with :data:`BATCH_CALLERS`.
        warm: queries before the first turn, not measured, with as many callers.
        rounds: of all peers in turn.
        together: load all peers at the start and stop (SIGSTOP) those whose turn it is not; else
            start each anew for each of its turns, which takes longer and less memory.
    """

    single: int = 20
    batch: int = 96
    warm: int = 32
    rounds: int = 5
    together: bool = True

    def quick(self) -> MissesPlan:
        """Short, to see that it works; its figures say nothing."""
        return replace(self, single=2, batch=8, warm=2, rounds=1, together=False)


@dataclass(frozen=True, slots=True)
class ScalePlan:
    """What more of something costs.

    Attributes:
        candidates: of a miss.
        misses: for each number of candidates, and for each number of loaded versions.
        entries: of the cache in memory.
        hits: timed look-ups for each number of loaded versions and of entries.
    """

    candidates: tuple[int, ...] = (1, 2, 4, 8)
    misses: int = 40
    entries: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    hits: int = 5_000

    def quick(self) -> ScalePlan:
        """Short, to see that it works; its figures say nothing."""
        return replace(self, candidates=(1, 4), misses=2, entries=(1_000, 10_000), hits=100)


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """Rates from little to too much.

    Attributes:
        start_rate, factor, most_steps: of the rates that are tried, requests a second.
        step_s: at each.
        refine: steps between the last rate that was kept up with and the first that was not.
        unseen: share of the requests whose query nobody has sent before.
        known: queries that the others are drawn from, by Zipf's law.
        exponent: of that law.
        deadline_ms: of each request; ``None``: the service's own.
        good_share: of requests answered in time that a rate must have to count as kept up with.
    """

    start_rate: float = 4.0
    factor: float = 1.5
    most_steps: int = 16
    step_s: float = 30.0
    refine: int = 2
    unseen: float = 0.1
    known: int = 1000
    exponent: float = 1.0
    deadline_ms: int | None = None
    good_share: float = 0.99

    def quick(self) -> SweepPlan:
        """Short, to see that it works; its figures say nothing."""
        return replace(self, most_steps=3, step_s=3.0, refine=1, known=20)
