"""Rising rates: goodput, latency, and the highest rate that the service keeps up with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from loadtests.arrivals import Phase
from loadtests.bench.misses import stage_medians
from loadtests.exchange import Outcome
from loadtests.load import Maker, Mix
from loadtests.queries import Queries
from loadtests.report import Report, Row
from loadtests.runner import Context
from loadtests.scenarios.traffic import load, rewrite
from loadtests.summary import good_share, summarise
from loadtests.target import Target

_MAX_LAG_MS = 10.0
"""Limit of the generator's p99 lag; above it, latencies of a step are not the service's."""

Point = tuple[float, float]
"""Offered requests per second, and the share of them with a useful answer in time."""


@dataclass(frozen=True, slots=True)
class SweepPlan:
    """Sizes and durations.

    Attributes:
        start_rate, factor, most_steps: of the rates, in requests per second.
        step_s: duration of each step.
        refine: steps between the last rate that was kept up with and the first that was not.
        unseen: share of the requests with a never-seen query.
        known: queries that the others are drawn from by Zipf's law.
        exponent: of this law.
        deadline_ms: of each request; ``None``: the service's own.
        good_share: share of answers in time of a rate that is kept up with.
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
        """See :class:`loadtests.runner.Plan`."""
        return replace(self, most_steps=3, step_s=3.0, refine=1, known=20)


async def run(
    plan: SweepPlan, context: Context, *, settings: Mapping[str, str], name: str = "sweep"
) -> Report:
    """Load one service, which starts with an empty cache, with rising rates.

    Args:
        plan: sizes and durations.
        context: of the run.
        settings: of the service.
        name: of the report.
    """
    seed, unseen = context.seed, context.queries
    known = Queries(unseen.known[: plan.known], seed=seed, exponent=plan.exponent)
    steps: list[dict[str, Any]] = []
    stages: dict[str, list[Mapping[str, float]]] = {}
    async with Target(context.folder / "sweep", settings) as target:
        named = plan.deadline_ms is not None
        deadline_s = (plan.deadline_ms or 0) / 1000 if named else target.default_deadline_s
        send = partial(rewrite, deadline_s=deadline_s, named=named)
        parts: list[tuple[float, Maker]] = [
            (1.0 - plan.unseen, lambda: send(known.popular(), "known")),
            (plan.unseen, lambda: send(unseen.unseen(), "unseen")),
        ]
        mix = Mix(parts, seed=seed)
        while (rate := next_rate(plan, _points(steps))) is not None:
            phases = [Phase("step", rate, plan.step_s)]
            outcomes = await load(phases, mix, target, seed=seed + len(steps)).run()
            steps.append(_step(rate, plan, outcomes))
            for outcome in outcomes:
                if outcome.code == 200 and outcome.stages:
                    stages.setdefault(outcome.source, []).append(outcome.stages)
            context.say(f"sweep at {rate:.1f}/s: {100 * steps[-1]['good_share']:.1f} % in time")
    kept, lost = knee(_points(steps), plan.good_share)
    figures = {
        "deadline_ms": round(1000 * deadline_s),
        "unseen_share": plan.unseen,
        "known_queries": len(known.known),
        "zipf_exponent": plan.exponent,
        "knee_per_s": kept,
        "first_rate_not_kept_up_with_per_s": lost,
        "steps": sorted(steps, key=lambda step: step["rate"]),
        "stages_ms": {source: stage_medians(one) for source, one in stages.items()},
    }
    return Report(name, figures, _rows(figures, plan))


def knee(points: Sequence[Point], share: float) -> tuple[float | None, float | None]:
    """The highest rate that was kept up with, and the lowest rate above it that was not.

    A rate was kept up with if at least ``share`` of its requests were answered in time. A rate
    above one that was not kept up with does not count: that was luck.

    Args:
        points: in any order.
        share: in (0, 1].

    Returns:
        Each is ``None`` if there is no such rate.
    """
    kept: float | None = None
    for rate, good in sorted(points):
        if good < share:
            return kept, rate
        kept = rate
    return kept, None


def next_rate(plan: SweepPlan, points: Sequence[Point]) -> float | None:
    """The next rate after these, in the order of trial; ``None`` at the end."""
    lost_at = next((i for i, (_, share) in enumerate(points) if share < plan.good_share), None)
    if lost_at is None:
        tried = len(points)
        return plan.start_rate * plan.factor**tried if tried < plan.most_steps else None
    kept, lost = knee(points, plan.good_share)
    if kept is None or lost is None or len(points) - lost_at - 1 >= plan.refine:
        return None
    # The geometric mean, because the rates rise by a factor.
    return math.sqrt(kept * lost)


def _points(steps: Sequence[Mapping[str, Any]]) -> list[Point]:
    return [(step["rate"], step["good_share"]) for step in steps]


def _step(rate: float, plan: SweepPlan, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    found = summarise(outcomes, plan.step_s)
    kinds = {
        kind: summarise([o for o in outcomes if o.kind == kind], plan.step_s)["latency_ms"]
        for kind in ("known", "unseen")
    }
    # A rate without arrivals was not kept up with.
    share = good_share(outcomes) or 0.0
    return found | {"rate": rate, "good_share": round(share, 5), "latency_by_kind_ms": kinds}


def _rows(figures: Mapping[str, Any], plan: SweepPlan) -> tuple[Row, ...]:
    kept, lost = figures["knee_per_s"], figures["first_rate_not_kept_up_with_per_s"]
    held = [step for step in figures["steps"] if step["rate"] == kept]
    best = max((step["goodput_per_s"] for step in figures["steps"]), default=0.0)
    note = "" if lost is not None else "INVALID as a limit: no rate was too much"
    if held and held[0]["generator_lag_ms"]["p99"] > _MAX_LAG_MS:
        note = "INVALID: the generator was behind"
    conditions = f"{plan.unseen:.0%} never seen, deadline {figures['deadline_ms']} ms"
    rows = [
        Row(
            f"highest rate with {plan.good_share:.0%} in time ({conditions})",
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
