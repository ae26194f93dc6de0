"""Figures of a run: counts, goodput, percentiles.

Percentiles are exact (a value that was observed, out of all of them), not from a histogram: a run
has a million outcomes at most. The HDR histogram package cannot be installed beside vLLM's CPU
build anyway (they want different releases of setuptools).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from loadtests.exchange import GRACE_S, LOST, Outcome

PERCENTILES = (50.0, 90.0, 99.0, 99.9)


def percentile(values: Collection[float], percent: float) -> float | None:
    """The least value that ``percent`` of all are not above; ``None`` without values."""
    if not values:
        return None
    return float(np.percentile(np.fromiter(values, float), percent, method="inverted_cdf"))


def milliseconds(seconds: Collection[float]) -> dict[str, float | int] | None:
    """Count, percentiles and maximum of times, in milliseconds; ``None`` without times."""
    if not seconds:
        return None
    values = np.fromiter(seconds, float) * 1000
    found = np.percentile(values, [*PERCENTILES, 100.0], method="inverted_cdf")
    names = [*(f"p{percent:g}" for percent in PERCENTILES), "max"]
    figures = {name: round(float(v), 3) for name, v in zip(names, found, strict=True)}
    return {"count": len(values), **figures}


def goodput(outcomes: Iterable[Outcome], seconds: float, *, grace_s: float = GRACE_S) -> float:
    """Useful answers within their deadline, for each second of a stretch of a run.

    Args:
        outcomes: of the requests that were due in it.
        seconds: how long it was.
        grace_s: what an answer may come after its deadline.
    """
    return sum(outcome.good(grace_s) for outcome in outcomes) / seconds


def good_share(outcomes: Collection[Outcome], *, grace_s: float = GRACE_S) -> float | None:
    """Share of the requests with a useful answer within their deadline; ``None`` without any."""
    if not outcomes:
        return None
    return sum(outcome.good(grace_s) for outcome in outcomes) / len(outcomes)


def summarise(
    outcomes: Sequence[Outcome], seconds: float, *, grace_s: float = GRACE_S
) -> dict[str, Any]:
    """What happened in a stretch of a run, for JSON.

    Args:
        outcomes: of the requests that were due in it.
        seconds: how long it was.
        grace_s: what an answer may come after its deadline and still be in time.
    """
    answered = [o for o in outcomes if o.failure is None]
    good = [o for o in outcomes if o.good(grace_s)]
    codes = sorted({o.code for o in answered})
    share = good_share(outcomes, grace_s=grace_s)
    return {
        "seconds": round(seconds, 3),
        "requests": len(outcomes),
        "offered_per_s": round(len(outcomes) / seconds, 3),
        "goodput_per_s": round(len(good) / seconds, 3),
        "goodput_without_grace_per_s": round(goodput(outcomes, seconds, grace_s=0.0), 3),
        "good_share": None if share is None else round(share, 5),
        "late": sum(o.late(grace_s) for o in outcomes),
        "codes": _counts(o.code for o in answered),
        "statuses": _counts(o.status or "-" for o in answered),
        "sources": _counts(o.source for o in answered if o.source),
        "failures": _counts(o.failure.value for o in outcomes if o.failure is not None),
        "latency_ms": milliseconds([o.latency for o in answered]),
        "latency_of_good_ms": milliseconds([o.latency for o in good]),
        "latency_by_code_ms": {
            str(code): milliseconds([o.latency for o in answered if o.code == code])
            for code in codes
        },
        "generator_lag_ms": milliseconds([o.lag for o in outcomes]),
    }


def worst_over_deadline(outcomes: Iterable[Outcome], *, from_sending: bool = False) -> float | None:
    """Longest time that a request ended after its deadline, in seconds; negative: all before.

    Args:
        outcomes: those of callers that hung up are left out, and of what was never sent.
        from_sending: count from when it was sent, which leaves out what the generator was behind.
    """
    ended = [o for o in outcomes if o.failure is None or o.failure in LOST]
    return max((o.over_deadline - (o.lag if from_sending else 0.0) for o in ended), default=None)


def recovery_s(
    outcomes: Iterable[Outcome],
    *,
    start: float,
    end: float,
    share: float,
    window_s: float = 3.0,
    step_s: float = 0.25,
    grace_s: float = GRACE_S,
) -> float | None:
    """Seconds from ``start`` until requests are answered well, and go on being so to the end.

    That is the first moment from which both the next ``window_s`` and all the time to ``end`` have
    at least ``share`` of useful answers in time. ``None`` if there is none.
    """
    told = sorted((o.due, o.good(grace_s)) for o in outcomes if start <= o.due < end)
    for step in range(int((end - start - window_s) / step_s) + 1):
        since = start + step * step_s
        window = [good for due, good in told if since <= due < since + window_s]
        rest = [good for due, good in told if due >= since]
        if window and min(sum(window) / len(window), sum(rest) / len(rest)) >= share:
            return round(since - start, 3)
    return None


def _counts(values: Iterable[Any]) -> dict[str, int]:
    return {str(value): n for value, n in sorted(Counter(values).items())}
