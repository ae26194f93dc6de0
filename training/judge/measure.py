"""Quality of a judge on queries outside its training data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from training.data.pairs import World
from training.data.schema import GRADE_RELEVANT
from training.data.search import stems
from training.errors import DataError
from training.judge.model import Judge
from training.judge.train import Example, graded, junk
from training.statistics import Array, tagging


def measure_judge(
    judge: Judge, world: World, queries: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """Figures of a judge on the graded pairs of ``queries``, and on a fourth as much junk.

    * ``spearman``: rank correlation of scores and grades; ``overlap_spearman`` the same of a
      judge that only counts the query's words in the title;
    * ``relevant``: telling grades from 2.33 on from lower ones
    (:func:`training.statistics.tagging`);
    * ``order``: of two products of one query with different grades, how often the better one has
      the higher score (0.5 is chance);
    * ``rmse``: root of the mean squared error in grades (1-3);
    * ``calibration_error``: :func:`calibration_error`;
    * ``junk``: mean score of junk, and its separation from graded products (ROC AUC).

    Raises:
        DataError: the queries have too few different grades to measure anything.
    """
    examples = graded(world, queries)
    targets = np.array([e.target for e in examples])
    labels = [bool(t >= (GRADE_RELEVANT - 1.0) / 2.0 - 1e-9) for t in targets]
    if len(set(labels)) < 2:
        raise DataError("a judge can only be measured on relevant and irrelevant products")
    noise = junk(world, queries, -(-len(examples) // 4), seed)
    found = np.array(judge.score([e.pair for e in [*examples, *noise]]))
    scores, low = found[: len(examples)], found[len(examples) :]
    return {
        "pairs": len(examples),
        "spearman": round(_rank_correlation(scores, targets), 4),
        "overlap_spearman": round(_rank_correlation(overlaps(world, examples), targets), 4),
        "relevant": tagging(labels, list(scores), seed),
        "order": round(order_accuracy([e.query for e in examples], scores, targets), 4),
        "rmse": round(2.0 * float(np.sqrt(np.mean((scores - targets) ** 2))), 4),
        "calibration_error": round(calibration_error(scores, targets), 4),
        "mean_score": round(float(scores.mean()), 4),
        "mean_target": round(float(targets.mean()), 4),
        "junk": {
            "mean_score": round(float(low.mean()), 4),
            "auc": round(float(roc_auc_score([1] * len(scores) + [0] * len(low), found)), 4),
        },
    }


def overlaps(world: World, examples: Sequence[Example]) -> Array:
    """Share of the query's stemmed words that the title holds, spelling corrected."""
    shares = []
    for example in examples:
        words = set(stems(world.corrections.get(example.query, example.query)))
        held = words.intersection(stems(example.title))
        shares.append(len(held) / len(words) if words else 0.0)
    return np.array(shares)


def calibration_error(scores: Array, targets: Array, bins: int = 10) -> float:
    """Expected calibration error: mean |score - target| of bins with equally many scores.

    After Naeini et al., "Obtaining well calibrated probabilities using Bayesian binning" (2015),
    with bins of equal mass and graded targets. Empty input gives 0.
    """
    parts = np.array_split(np.argsort(scores, kind="stable"), bins)
    gaps = [len(p) * abs(scores[p].mean() - targets[p].mean()) for p in parts if len(p)]
    return float(sum(gaps) / max(1, len(scores)))


def order_accuracy(queries: Sequence[str], scores: Array, targets: Array) -> float:
    """Share of pairs of one query with different targets that the scores order alike.

    Equal scores count half; without any such pair it is NaN.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for index, query in enumerate(queries):
        groups[query].append(index)
    right: list[float] = []
    for members in groups.values():
        for a, b in combinations(members, 2):
            if targets[a] != targets[b]:
                signs = np.sign(scores[a] - scores[b]) * np.sign(targets[a] - targets[b])
                right.append(0.5 + 0.5 * float(signs))
    return float(np.mean(right)) if right else float("nan")


def _rank_correlation(scores: Array, targets: Array) -> float:
    if np.ptp(scores) == 0 or np.ptp(targets) == 0:
        return float("nan")
    return float(spearmanr(scores, targets).statistic)
