"""Rates from little to too much: goodput, latency and the knee."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loadtests.arrivals import Phase, poisson
from loadtests.bench.knee import Point, Rising, knee
from loadtests.bench.plans import SweepPlan
from loadtests.bench.section import Row, Say, Section
from loadtests.bench.timing import TimedTransport, breakdown
from loadtests.exchange import Outcome
from loadtests.load import Mix, OpenLoop
from loadtests.queries import Queries
from loadtests.scenarios.traffic import rewrite
from loadtests.summary import good_share, summarise
from loadtests.target import Target

_HITS = frozenset({"memory", "redis"})
_WINDOWS = 6
"""Points in time of the hit ratio, for each rate."""
_LAG_MS = 10.0
"""The generator's p99 behind its plan from which the latencies of a step are not the service's."""


async def run(
    plan: SweepPlan,
    settings: Mapping[str, str],
    queries: Queries,
    folder: Path,
    say: Say,
    seed: int,
) -> Section:
    """One service with a cold cache, that fills as the rates rise.

    Args:
        plan: how long and how much.
        settings: of the service.
        queries: to draw from.
        folder: for logs.
        say: tells whoever waits.
        seed: of arrivals and queries.
    """
    known = Queries(queries.known[: plan.known], seed=seed, exponent=plan.exponent)
    steps: list[dict[str, Any]] = []
    timeline: list[dict[str, float]] = []
    async with (
        Target(folder / "sweep", settings) as target,
        TimedTransport(target.url) as transport,
    ):
        named = plan.deadline_ms is not None
        deadline_s = (plan.deadline_ms or 0) / 1000 if named else target.default_deadline_s
        mix = Mix(
            [
                (
                    1.0 - plan.unseen,
                    lambda: rewrite(known.popular(), "known", deadline_s=deadline_s, named=named),
                ),
                (
                    plan.unseen,
                    lambda: rewrite(queries.unseen(), "unseen", deadline_s=deadline_s, named=named),
                ),
            ],
            seed=seed,
        )
        rising = Rising(plan.start_rate, plan.factor, plan.most_steps, plan.refine, plan.good_share)
        passed = 0.0
        while (rate := rising.next(_points(steps))) is not None:
            phases = [Phase("step", rate, plan.step_s)]
            loop = OpenLoop(poisson(phases, seed=seed + len(steps)), mix, transport)
            outcomes = await loop.run()
            steps.append(_step(rate, plan, outcomes))
            timeline += _hit_ratios(outcomes, plan.step_s, passed, rate)
            passed += plan.step_s
            say(f"sweep at {rate:.1f}/s: {100 * steps[-1]['good_share']:.1f} % in time")
        kept, lost = knee(_points(steps), plan.good_share)
        figures = {
            "deadline_ms": round(1000 * deadline_s),
            "unseen_share": plan.unseen,
            "known_queries": len(known.known),
            "zipf_exponent": plan.exponent,
            "knee_per_s": kept,
            "first_rate_not_kept_up_with_per_s": lost,
            "steps": sorted(steps, key=lambda step: step["rate"]),
            "hit_ratio_over_time": timeline,
            "stages_ms": {source: breakdown(told) for source, told in transport.stages.items()},
        }
    return Section("sweep", figures, _rows(figures, plan))


def _points(steps: Sequence[Mapping[str, Any]]) -> list[Point]:
    return [Point(step["rate"], step["good_share"]) for step in steps]


def _step(rate: float, plan: SweepPlan, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    found = summarise(outcomes, plan.step_s)
    kinds = {
        kind: summarise([o for o in outcomes if o.kind == kind], plan.step_s)["latency_ms"]
        for kind in ("known", "unseen")
    }
    # Without a single arrival nothing was kept up with.
    share = good_share(outcomes) or 0.0
    return found | {"rate": rate, "good_share": round(share, 5), "latency_by_kind_ms": kinds}


def _hit_ratios(
    outcomes: Sequence[Outcome], step_s: float, passed: float, rate: float
) -> list[dict[str, float]]:
    """Share of hits in each part of a step, by when the requests were due."""
    found = []
    for window in range(_WINDOWS):
        begin, end = step_s * window / _WINDOWS, step_s * (window + 1) / _WINDOWS
        answered = [o for o in outcomes if begin <= o.due < end and o.failure is None]
        if answered:
            hits = sum(o.source in _HITS for o in answered)
            at = round(passed + (begin + end) / 2, 2)
            found.append({"at_s": at, "rate": rate, "hit_ratio": round(hits / len(answered), 4)})
    return found


def _rows(figures: Mapping[str, Any], plan: SweepPlan) -> tuple[Row, ...]:
    kept, lost = figures["knee_per_s"], figures["first_rate_not_kept_up_with_per_s"]
    held = [step for step in figures["steps"] if step["rate"] == kept]
    best = max((step["goodput_per_s"] for step in figures["steps"]), default=0.0)
    note = "" if lost is not None else "INVALID as a limit: no rate was too much"
    if held and held[0]["generator_lag_ms"]["p99"] > _LAG_MS:
        note = "INVALID: the generator was behind"
    told = f"{plan.unseen:.0%} never seen, deadline {figures['deadline_ms']} ms"
    rows = [
        Row(
            f"highest rate with {plan.good_share:.0%} in time ({told})",
            "none" if kept is None else f"{kept:.1f} requests/s",
            note=note,
        ),
        Row("most useful answers in time", f"{best:.1f}/s"),
    ]
    for step in held:
        latency = step["latency_ms"]
        rows.append(
            Row(
                "latency at that rate",
                f"p50 {latency['p50']:.1f}, p99 {latency['p99']:.1f}, "
                f"p99.9 {latency['p99.9']:.1f} ms",
            )
        )
    return tuple(rows)
