"""Statistics with their uncertainty: pure functions on arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.metrics import roc_auc_score

RESAMPLES = 10_000

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with its 95 % percentile-bootstrap interval."""

    mean: float
    low: float
    high: float

    def as_list(self) -> list[float]:
        """``[mean, low, high]``, rounded to four places."""
        return [round(v, 4) for v in (self.mean, self.low, self.high)]


def bootstrap(values: Sequence[float] | Array, seed: int = 0) -> Interval:
    """Mean of per-query ``values`` with a 95 % bootstrap interval over queries.

    Of paired differences this is the paired bootstrap. Empty input gives NaN.
    """
    array = np.asarray(values, dtype=np.float64)
    if array.size == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    means = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, 500):
        picks = rng.integers(0, array.size, (500, array.size))
        means[start : start + 500] = array[picks].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(array.mean()), float(low), float(high))


def hit_rate(hits: Sequence[int], engaged: Sequence[int], seed: int = 0) -> Interval:
    """sum(hits) / sum(engaged) with a 95 % percentile bootstrap that draws queries again.

    Beside a mean over queries, in which one with a single engaged product counts as much as one
    with twenty.

    Without engaged products it is NaN.
    """
    tops, bottoms = np.asarray(hits, dtype=float), np.asarray(engaged, dtype=float)
    keep = bottoms > 0
    tops, bottoms = tops[keep], bottoms[keep]
    if bottoms.size == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    ratios = np.empty(RESAMPLES)
    for start in range(0, RESAMPLES, 500):
        picks = rng.integers(0, bottoms.size, (500, bottoms.size))
        ratios[start : start + 500] = tops[picks].sum(axis=1) / bottoms[picks].sum(axis=1)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return Interval(float(tops.sum() / bottoms.sum()), float(low), float(high))


def calibration_error(labels: Sequence[bool], scores: Sequence[float]) -> float:
    """Expected calibration error, in ten bins of equal width (Naeini et al., AAAI 2015).

    The mean, over pairs, of how far a bin's mean score is from its share of relevant pairs.
    """
    truth, values = np.asarray(labels, dtype=float), np.asarray(scores, dtype=float)
    bins = np.clip((values * 10).astype(int), 0, 9)
    off = [abs(truth[bins == b].sum() - values[bins == b].sum()) for b in range(10)]
    return float(sum(off) / truth.size)


def tagging(labels: Sequence[bool], scores: Sequence[float], seed: int = 0) -> dict[str, object]:
    """Accuracy at 0.5, ROC AUC and calibration error of relevance scores.

    The first two have a bootstrap interval over pairs.

    Raises:
        ValueError: relevant or irrelevant pairs are missing.
    """
    truth = np.asarray(labels, dtype=bool)
    values = np.asarray(scores, dtype=np.float64)
    if truth.all() or not truth.any():
        raise ValueError("tagging needs relevant and irrelevant pairs")
    rng = np.random.default_rng(seed)
    areas = []
    for _ in range(500):
        picks = rng.integers(0, truth.size, truth.size)
        if truth[picks].all() or not truth[picks].any():
            continue
        areas.append(roc_auc_score(truth[picks], values[picks]))
    low, high = np.percentile(areas, [2.5, 97.5])
    auc = Interval(float(roc_auc_score(truth, values)), float(low), float(high))
    return {
        "pairs": int(truth.size),
        "relevant_share": round(float(truth.mean()), 4),
        "accuracy": bootstrap(((values >= 0.5) == truth).astype(np.float64), seed).as_list(),
        "auc": auc.as_list(),
        "calibration_error": round(calibration_error(labels, scores), 4),
    }
