"""Overload: three times the capacity for a minute, then recovery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from loadtests.arrivals import Phase
from loadtests.exchange import Outcome
from loadtests.report import Promise, Report, shown
from loadtests.runner import Context
from loadtests.scenarios.traffic import load, misses, warm
from loadtests.summary import good_share, goodput, milliseconds, recovery_s, summarise
from loadtests.target import Target

_FULL_SHARE = 0.9
"""The service is past its capacity if its share of good answers is below this."""
_FULL_STEPS = 2
"""Number of such steps in a row that end the sweep."""
_WARM_QUERIES = 8


@dataclass(frozen=True, slots=True)
class OverloadPlan:
    """Sizes and durations.

    Attributes:
        deadlines_ms: one pass for each; ``None`` is the service's default, which is not sent.
        start_rate: first rate of the sweep, per second.
        factor: from one rate to the next.
        max_steps: of the sweep, which ends earlier once the service is past its capacity.
        step_s: of the sweep.
        peak_s: second measurement at the best rate, because the best of many short steps is lucky.
        before_s, overload_s, after_s: durations at ``base``, ``overload`` and ``base``.
        overload, base: rates as multiples of the peak goodput.
    """

    deadlines_ms: tuple[int | None, ...] = (None, 1000)
    start_rate: float = 2.0
    factor: float = 1.5
    max_steps: int = 14
    step_s: float = 20.0
    peak_s: float = 60.0
    before_s: float = 20.0
    overload_s: float = 60.0
    after_s: float = 30.0
    overload: float = 3.0
    base: float = 0.7

    def quick(self) -> OverloadPlan:
        """See :class:`loadtests.runner.Plan`."""
        return replace(
            self,
            deadlines_ms=self.deadlines_ms[:1],
            max_steps=4,
            step_s=4.0,
            peak_s=5.0,
            before_s=4.0,
            overload_s=8.0,
            after_s=8.0,
        )


async def run(plan: OverloadPlan, context: Context) -> Report:
    """Measure peak goodput of never-seen queries, overload and recovery for each deadline."""
    figures: dict[str, Any] = {}
    promises: list[Promise] = []
    async with Target(context.folder) as target:
        await warm(target, context.queries.known[:_WARM_QUERIES])
        for deadline_ms in plan.deadlines_ms:
            name = "default deadline" if deadline_ms is None else f"deadline {deadline_ms} ms"
            figures[name] = found = await _Pass(plan, context, target, deadline_ms).run()
            promises += _promises(name, found)
        figures["logged_errors"] = dict(target.events("error"))
    return Report("overload", figures, tuple(promises))


class _Pass:
    """All measurements with one deadline."""

    def __init__(
        self, plan: OverloadPlan, context: Context, target: Target, deadline_ms: int | None
    ) -> None:
        self._plan, self._target, self._say = plan, target, context.say
        self._seed = context.seed
        self._deadline_s = target.default_deadline_s if deadline_ms is None else deadline_ms / 1000
        self._make = misses(
            context.queries, deadline_s=self._deadline_s, named=deadline_ms is not None
        )

    async def run(self) -> dict[str, Any]:
        """Sweep, peak, overload, recovery."""
        plan = self._plan
        sweep = await self._sweep()
        best = max(sweep, key=lambda step: float(step["goodput_per_s"]))["rate"]
        measured = await self._offer([Phase("peak", best, plan.peak_s)])
        peak = goodput(measured, plan.peak_s)
        # At least a little, so that a service that answers nothing is still measured.
        base, over = max(plan.base * peak, 0.2), max(plan.overload * peak, 1.0)
        self._say(f"peak {peak:.2f}/s; {over:.1f}/s for {plan.overload_s:.0f} s, then {base:.1f}/s")
        outcomes = await self._offer(
            [
                Phase("before", base, plan.before_s),
                Phase("overload", over, plan.overload_s),
                Phase("after", base, plan.after_s),
            ]
        )
        return {
            "deadline_s": self._deadline_s,
            "sweep": sweep,
            "capacity_reached": _is_full(sweep[-1]),
            "peak_rate": best,
            "peak_goodput_per_s": round(peak, 3),
            "peak": summarise(measured, plan.peak_s),
            **_overload_figures(outcomes, peak, plan),
        }

    async def _sweep(self) -> list[dict[str, Any]]:
        """Rising rates until two in a row are past the capacity."""
        plan = self._plan
        steps: list[dict[str, Any]] = []
        full = 0
        for step in range(plan.max_steps):
            rate = plan.start_rate * plan.factor**step
            outcomes = await self._offer([Phase(f"sweep {rate:.1f}", rate, plan.step_s)])
            figures = summarise(outcomes, plan.step_s)
            steps.append({"rate": round(rate, 3), **figures})
            self._say(f"offered {rate:.1f}/s: goodput {figures['goodput_per_s']:.2f}/s")
            full = full + 1 if _is_full(figures) else 0
            if full == _FULL_STEPS:
                break
        return steps

    async def _offer(self, phases: Sequence[Phase]) -> list[Outcome]:
        self._seed += 1
        return await load(phases, self._make, self._target, seed=self._seed).run()


def _is_full(step: dict[str, Any]) -> bool:
    share = step["good_share"]
    return share is not None and share < _FULL_SHARE


def _overload_figures(
    outcomes: Sequence[Outcome], peak: float, plan: OverloadPlan
) -> dict[str, Any]:
    """Figures of the run before, during and after the overload."""
    phases = {
        name: [o for o in outcomes if o.phase == name] for name in ("before", "overload", "after")
    }
    over = phases["overload"]
    shed = [o for o in over if o.code == 503]
    others = [o for o in over if o.code >= 500 and o.code != 503]
    before = good_share(phases["before"])
    start = plan.before_s + plan.overload_s
    good = goodput(over, plan.overload_s)
    return {
        "before": summarise(phases["before"], plan.before_s),
        "overload": summarise(over, plan.overload_s),
        "after": summarise(phases["after"], plan.after_s),
        "goodput_share_of_peak": round(good / peak, 4) if peak else None,
        "shed_share": round(len(shed) / len(over), 4) if over else None,
        "latency_of_503_ms": milliseconds([o.latency for o in shed]),
        "latency_of_503_from_sending_ms": milliseconds([o.latency - o.lag for o in shed]),
        "other_5xx": len(others),
        "neither_good_nor_503": sum(not o.good() and o.code != 503 for o in over),
        "recovery_s": recovery_s(
            phases["after"],
            start=start,
            end=start + plan.after_s,
            # Recovered means at least 0.95 of the share before the overload.
            share=0.95 * (before if before is not None else 1.0),
        ),
    }


def _promises(name: str, found: dict[str, Any]) -> list[Promise]:
    # Without the capacity, the rate may be no overload.
    share = found["goodput_share_of_peak"] if found["capacity_reached"] else None
    recovery = found["recovery_s"]
    fast = found["latency_of_503_ms"]
    shed = "none" if fast is None else f"p50 {fast['p50']:.1f}, p99 {fast['p99']:.1f} ms"
    requests = found["overload"]["requests"]
    return [
        Promise(
            f"3x capacity for {found['overload']['seconds']:.0f} s, {name}: goodput at least 90 % "
            "of the peak",
            f"{shown(share * 100, '%')} of {found['peak_goodput_per_s']:.2f}/s"
            if share is not None
            else "the sweep did not reach the capacity",
            None if share is None else share >= 0.9,
        ),
        Promise(
            f"{name}: the rest fast 503s",
            f"{shown(100 * (found['shed_share'] or 0.0), '%')} are 503s ({shed}); "
            f"{found['neither_good_nor_503']} of {requests} neither in time nor 503",
            None,
        ),
        Promise(
            f"{name}: recovery within 5 s",
            shown(recovery, "s", 2),
            recovery is not None and recovery <= 5.0,
        ),
        Promise(f"{name}: no 5xx but 503", str(found["other_5xx"]), found["other_5xx"] == 0),
    ]
