"""Rejection sampling: the search engine judges what the model wrote for training queries."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

from training.data.folds import compact
from training.data.pairs import KEEP_OWN, REJECT_OWN, QueryPairs, World, is_echo
from training.data.search import recall

HARM = 0.05
"""A rewrite that costs the fusion more recall than this is judged irrelevant."""
MAX_ACCEPT = 3
MAX_REJECT = 4


def judge_samples(
    world: World,
    drawn: Iterable[tuple[str, list[str]]],
    protected: frozenset[str] = frozenset(),
    max_write: int = 3,
) -> tuple[list[QueryPairs], dict[str, Any]]:
    """Sort each query's samples into what to write, to accept and to reject.

    Written again are samples that gain recall. Those that keep what the query finds are judged
    relevant and not written: to a search engine that takes any word, "clade garden hose" is as
    good as "garden hose". Samples in the grey zone between teach nothing and are dropped; so are
    those of a query that finds nothing, unless they find something, and those whose compact form
    is ``protected``.

    Returns:
        the pairs, and figures: samples, echo, relevant and irrelevant shares.
    """
    judged: list[QueryPairs] = []
    counts = dict.fromkeys(("samples", "distinct", "echo", "relevant", "irrelevant", "gain"), 0)
    for query, texts in tqdm(drawn, desc="judging samples", unit="query"):
        counts["samples"] += len(texts)
        base = recall(world.plain(query), world.relevant[query])
        pairs = QueryPairs(query)
        good = []
        for text in dict.fromkeys(texts):
            counts["distinct"] += 1
            if is_echo(query, text):
                counts["echo"] += 1
                continue
            if compact(text) in protected:
                continue
            scored = world.score(query, text, "sample")
            if scored.gain < -HARM or (base > 0 and scored.own <= REJECT_OWN * base):
                pairs.reject.append(scored)
                counts["irrelevant"] += 1
            elif scored.gain >= 0 and scored.own > 0 and scored.own >= KEEP_OWN * base:
                good.append(scored)
                counts["relevant"] += 1
                counts["gain"] += scored.gain > 0
        good.sort(key=lambda s: (-s.gain, -s.own, s.text))
        pairs.write = [s for s in good if s.gain > 0][:max_write]
        pairs.accept = [s for s in good if s.gain <= 0][:MAX_ACCEPT]
        pairs.reject = pairs.reject[:MAX_REJECT]
        if pairs.write or pairs.accept or pairs.reject:
            judged.append(pairs)
    return judged, counts
