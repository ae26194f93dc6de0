"""Analysis of the experiment: figures of each arm, tests, and validity of the split.

A visitor is the unit of randomisation, so rates are per visitor and visitors are what is counted:

* ``uctr``: visitors with at least one click / visitors;
* ``ucvr``: visitors with at least one purchase / visitors (its tests: two proportions).

Tests: the pooled two-proportion z-test; Newcombe's hybrid score interval of the difference;
p-values adjusted by Holm's method over the tests of a slice (all by statsmodels). The smallest
effect that a test would find with 80 % power is solved for in Cohen's h.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import chisquare
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import zt_ind_solve_power
from statsmodels.stats.proportion import (
    confint_proportions_2indep,
    proportion_confint,
    proportions_ztest,
)

from training.ab.errors import ExperimentError
from training.ab.run import CONTROL, Visit
from training.ab.shoppers import Tail
from training.statistics import bootstrap

ALPHA = 0.05
POWER = 0.8
MISMATCH = 0.001
"""Below this p-value the visitors of the arms are not in the proportion that was set up."""

Happened = Callable[[Visit], bool]

METRICS: dict[str, Happened] = {
    "ucvr": lambda visit: any(s.done.bought is not None for s in visit.searches),
    "uctr": lambda visit: any(s.done.clicks for s in visit.searches),
}


def rate(count: int, of: int) -> dict[str, Any]:
    """A share with its 95 % Wilson interval."""
    if not of:
        return {"count": 0, "of": 0, "rate": None, "low": None, "high": None}
    low, high = proportion_confint(count, of, alpha=ALPHA, method="wilson")
    share = count / of
    # Of none or of all, one end is the share itself, but for the rounding.
    low, high = min(float(low), share), max(float(high), share)
    return {"count": count, "of": of, "rate": share, "low": low, "high": high}


def two_proportions(count: int, of: int, other: int, other_of: int) -> dict[str, Any]:
    """The difference of two shares, ``count / of`` less ``other / other_of``.

    Returns:
        ``difference`` with its 95 % interval ``low`` .. ``high``, the two-sided ``p`` and the
        smallest difference to ``other`` that such a test finds, ``detectable``.
    """
    low, high = confint_proportions_2indep(
        count, of, other, other_of, compare="diff", method="newcomb", alpha=ALPHA
    )
    # Where all visitors did the same, the test's variance is zero.
    same = count + other in (0, of + other_of)
    p = 1.0 if same else float(proportions_ztest([count, other], [of, other_of])[1])
    return {
        "difference": count / of - other / other_of,
        "low": float(low),
        "high": float(high),
        "p": p,
        "detectable": detectable(other / other_of, of, other_of),
    }


def detectable(base: float, visitors: int, others: int) -> float:
    """The rise over a share ``base`` of ``others`` that a test finds with 80 % power.

    In Cohen's h, the difference of ``2 arcsin(sqrt(share))``, it is that of the normal test:
    ``(z(0.975) + z(0.8)) sqrt(1 / visitors + 1 / others)``. At most ``1 - base``.
    """
    effect = zt_ind_solve_power(
        nobs1=visitors, ratio=others / visitors, alpha=ALPHA, power=POWER, alternative="two-sided"
    )
    angle = math.asin(math.sqrt(base)) + float(effect) / 2
    return math.sin(min(angle, math.pi / 2)) ** 2 - base


def sample_ratio(observed: Mapping[str, int], shares: Mapping[str, float]) -> dict[str, Any]:
    """Whether the visitors that each arm saw are in the proportion of ``shares`` (chi-square).

    Unanswered visitors are in no arm: too many of them show as a mismatch.
    """
    seen = [observed.get(arm, 0) for arm in shares]
    expected = [share * sum(seen) for share in shares.values()]
    p = float(chisquare(seen, expected).pvalue) if len(seen) > 1 else 1.0
    return {
        "p": p,
        "mismatch": p < MISMATCH,
        "arms": {
            arm: {"seen": count, "expected": wanted}
            for arm, count, wanted in zip(shares, seen, expected, strict=True)
        },
    }


def arm_figures(visits: Sequence[Visit]) -> dict[str, Any]:
    """Counts, rates, coverage and latency of the visits of one arm (milliseconds)."""
    searches = [s for visit in visits for s in visit.searches]
    calls = [s.asked for s in searches if s.asked is not None]
    times = [1000 * call.seconds for call in calls]
    figures: dict[str, Any] = {
        name: rate(sum(map(happened, visits)), len(visits)) for name, happened in METRICS.items()
    }
    return figures | {
        "visitors": len(visits),
        "searches": len(searches),
        "clicks": sum(len(s.done.clicks) for s in searches),
        "purchases": sum(s.done.bought is not None for s in searches),
        "coverage": sum(s.covered for s in searches) / len(searches) if searches else None,
        "statuses": dict(Counter(call.status for call in calls).most_common()),
        "latency_ms": {
            f"p{at}": float(np.percentile(times, at)) if times else None for at in (50, 95, 99)
        },
    }


def expected_gain(visits: Sequence[Visit]) -> dict[str, list[float]]:
    """Expectation of the user model for the served pages minus those without rewrites.

    The same visitors on both sides and no dice, so it is far more precise than the test. Means
    over visitors with 95 % bootstrap intervals.
    """
    return {
        "ucvr": bootstrap([v.expected.purchase - v.plain.purchase for v in visits]).as_list(),
        "uctr": bootstrap([v.expected.click - v.plain.click for v in visits]).as_list(),
    }


def slice_figures(arms: Mapping[str, Sequence[Visit]]) -> dict[str, Any]:
    """Figures of every arm, and the tests between each two arms, later ones less earlier ones."""
    figures = {arm: arm_figures(visits) for arm, visits in arms.items()}
    tests = [
        {"metric": metric, "arm": arm, "against": other}
        | two_proportions(
            figures[arm][metric]["count"], figures[arm][metric]["of"],
            figures[other][metric]["count"], figures[other][metric]["of"],
        )
        for other, arm in combinations(arms, 2)
        for metric in METRICS
        if arms[arm] and arms[other]
    ]  # fmt: skip
    if tests:
        adjusted = multipletests([test["p"] for test in tests], alpha=ALPHA, method="holm")[1]
        for test, p in zip(tests, adjusted, strict=True):
            test["p_holm"] = float(p)
    return {
        "arms": figures,
        "tests": tests,
        "expected_gain": {
            arm: expected_gain(visits) for arm, visits in arms.items() if arm != CONTROL and visits
        },
    }


def analyse(visits: Sequence[Visit], shares: Mapping[str, float], tail: Tail) -> dict[str, Any]:
    """All figures. ``shares`` are the arms and what part of the visitors each should have.

    Arms are compared by assignment, whichever version answered (intention to treat).

    Raises:
        ExperimentError: there are not two arms with visitors.
    """
    arms: dict[str, list[Visit]] = {arm: [] for arm in shares}
    for visit in visits:
        arms[visit.arm].append(visit)
    empty = [arm for arm, found in arms.items() if not found]
    if empty or len(arms) < 2:
        raise ExperimentError(
            f"nothing to compare: {', '.join(empty)} has no visitors; more --shoppers"
            if empty
            else "nothing to compare: set the weights of two versions, or --holdout-share over 0"
        )
    long_tail = {
        arm: [part for visit in found if (part := visit.restricted(tail.queries)).searches]
        for arm, found in arms.items()
    }
    seen = Counter(
        CONTROL if visit.arm == CONTROL else visit.answered_by[0]
        for visit in visits
        if visit.arm == CONTROL or visit.answered_by
    )
    return {
        "all": slice_figures(arms),
        "long_tail": {"rule": tail.rule, **slice_figures(long_tail)},
        "sample_ratio": sample_ratio(seen, shares),
        "visitors_unanswered": sum(v.arm != CONTROL and not v.answered_by for v in visits),
        "visitors_by_another_version": sum(
            any(version != v.arm for version in v.answered_by) for v in visits
        ),
    }
