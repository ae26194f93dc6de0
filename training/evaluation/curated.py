"""How well relevance tells right from wrong curated rewrites, by department and kind of wrong.

Beside the curated pairs, *swapped* ones: a right rewrite of another query of the department, which
nothing but the query tells from a right one; and the figure of a classifier that does not see the
query at all, since every set of written pairs has its style.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline

from model_store.store import StoredVersion
from training.data.curated_pairs import CURATED, CuratedQuery, read_curated, split_curated, swapped
from training.data.folds import compact
from training.evaluation.evaluate import Rewriter, ask, filtered
from training.evaluation.measure import brands_of
from training.statistics import tagging

SWAPPED = "swapped"


@dataclass(frozen=True, slots=True)
class JudgedPair:
    """A pair with its label; ``kind`` says what kind of right or wrong it is."""

    query: str
    rewrite: str
    right: bool
    kind: str
    department: str


def pairs_to_judge(queries: Sequence[CuratedQuery], seed: int = 0) -> list[JudgedPair]:
    """All curated pairs of ``queries``, then up to four swapped ones of each."""
    found = [
        JudgedPair(q.query, one.text, right, one.kind, q.department)
        for q in queries
        for right, items in ((True, q.right), (False, q.wrong))
        for one in items
    ]
    lent = swapped(queries, 4, seed)
    found += [
        JudgedPair(q.query, text, False, SWAPPED, q.department)
        for q in queries
        if q.right
        for text in lent[q.query]
    ]
    return found


def figures(pairs: Sequence[JudgedPair], scores: Sequence[float]) -> dict[str, Any]:
    """AUC, accuracy at 0.5 and calibration of curated pairs, and what lies behind them.

    Args:
        pairs: as :func:`pairs_to_judge` makes them.
        scores: relevance of each.

    Returns:
        ``curated`` (:func:`training.statistics.tagging`), ``departments`` (AUC of each),
        ``swapped`` (AUC of right curated pairs against swapped ones), ``mean`` (relevance by kind,
        right kinds under ``right``).
    """
    rows = list(zip(pairs, scores, strict=True))
    curated = [(pair, score) for pair, score in rows if pair.kind != SWAPPED]
    departments: dict[str, list[tuple[JudgedPair, float]]] = defaultdict(list)
    kinds: dict[str, list[float]] = defaultdict(list)
    for pair, score in rows:
        kinds["right" if pair.right else pair.kind].append(score)
        if pair.right:
            kinds[f"right: {pair.kind}"].append(score)
        if pair.kind != SWAPPED:
            departments[pair.department].append((pair, score))
    return {
        "curated": tagging([p.right for p, _ in curated], [s for _, s in curated]),
        "departments": {name: _auc(some) for name, some in sorted(departments.items())},
        "swapped": _auc([(p, s) for p, s in rows if p.right or p.kind == SWAPPED]),
        "mean": {kind: round(fmean(some), 3) for kind, some in sorted(kinds.items())},
    }


def query_blind(train: Sequence[CuratedQuery], pairs: Sequence[JudgedPair]) -> float:
    """AUC on curated ``pairs`` of a classifier that sees rewrites alone, learnt on ``train``."""
    texts = [(one.text, 1) for query in train for one in query.right]
    texts += [(one.text, 0) for query in train for one in query.wrong]
    model = make_pipeline(
        TfidfVectorizer(analyzer="char_wb", ngram_range=(1, 4), min_df=2, sublinear_tf=True),
        LogisticRegression(max_iter=300),
    )
    model.fit([text for text, _ in texts], [right for _, right in texts])
    curated = [pair for pair in pairs if pair.kind != SWAPPED]
    scores = model.predict_proba([pair.rewrite for pair in curated])[:, 1]
    return _auc(list(zip(curated, scores.tolist(), strict=True)))


def written(queries: Sequence[CuratedQuery], rewriter: Rewriter) -> dict[str, float]:
    """What a version answers with, by the labels: lower bounds, since they name few right ones.

    Returns:
        of queries with something right: ``answered`` (share with a rewrite), ``right`` (with one
        that is labelled right), ``wrong`` (share of rewrites labelled wrong); ``corrected``: share
        of misspelled queries whose correction is among the first two; ``nonsense``: share of the
        others that get a rewrite.
    """
    answers = {q.query: list(rewriter(q.query)) for q in queries}
    right = {q.query: {compact(one.text) for one in q.right} for q in queries}
    wrong = {q.query: {one.text for one in q.wrong} for q in queries}
    real = [q.query for q in queries if q.right]
    misspelled = [q for q in queries if q.corrected != q.query]
    said = [(query, text) for query in real for text in answers[query]]
    return {
        "queries": len(real),
        "answered": _share([bool(answers[q]) for q in real]),
        "right": _share([any(compact(t) in right[q] for t in answers[q]) for q in real]),
        "wrong": _share([text in wrong[query] for query, text in said]),
        "misspelled": len(misspelled),
        "corrected": _share([q.corrected in answers[q.query][:2] for q in misspelled]),
        "nonsense": _share([bool(answers[q.query]) for q in queries if not q.right]),
    }


def examine(version: StoredVersion) -> dict[str, Any]:
    """All figures of a version on the development fold of the curated pairs.

    Raises:
        EngineUnavailable: the engine could not start.
    """
    split = split_curated(read_curated(CURATED))
    pairs = pairs_to_judge(split.development)
    queries = [query.query for query in split.development]
    candidates, scores = asyncio.run(
        ask(version, queries, [(pair.query, pair.rewrite) for pair in pairs])
    )
    manifest = version.manifest
    rewriter = filtered(
        candidates, manifest.filter, brands_of(version), fold_case=manifest.prompt.fold_case
    )
    return {
        "version": manifest.name,
        "digest": manifest.digest,
        "fold": "development",
        "tags": figures(pairs, scores),
        "query_blind_auc": query_blind(split.train, pairs),
        "written": written(split.development, rewriter),
    }


def _share(values: Sequence[bool]) -> float:
    return round(fmean(values), 4) if values else float("nan")


def _auc(rows: Sequence[tuple[JudgedPair, float]]) -> float:
    labels = [pair.right for pair, _ in rows]
    if len(set(labels)) < 2:
        return float("nan")
    return round(float(roc_auc_score(labels, [score for _, score in rows])), 4)
