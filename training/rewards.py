"""Rewards of a sampled rewrite: pure functions, and their fusion.

A reward measures what a shopper gets. The service drops a rewrite that is malformed, repeats the
query, or loses a number or a brand, so such a sample (not ``usable``) has a negative reward. A
rewrite that the model tags IRRELEVANT is never shown, so its results have no value and only its tag
is rewarded.

========================  =====================================================================
``relevance``             mean judge score of the rewrite's first results for the query, as a share
                          of :data:`SAME` of the query's own, at most 1
``productivity``          share of the query's engaged products that the rewrite finds, as a share
                          of :data:`KEEP_OWN` of those that the query finds, at most 1
``increment``             share of the engaged products that the rewrite finds and the query alone
                          does not
``discovery``             how relevant the judge finds those of the first results that the query
                          alone does not find (:func:`discovery`)
``gain``                  recall of query and rewrite fused at the query's budget, less the
                          query's own, times :data:`GAIN_SCALE`, within [-1, 1]
``rules``                 product of seven guards in [0, 1] on the form (:func:`rules`); -1 if the
                          service would drop it
``agreement``             1 if the tag is the judges' verdict, 0 if not, 0.5 if they have none
========================  =====================================================================

Relevance and productivity have upper bounds: the query with a harmless word added is as relevant
and productive as the query, and a model that is paid for more of both learns to write this. A
rewrite that should not be shown by the judges' verdict gets neither, nor does one that the rules
reject: only increment and gain count for them.

Productivity and increment are BEQUE's (arXiv 2311.03758); that relevance, productivity, increment
and rules are rewarded together is the proposal of arXiv 2603.02555. ``gain`` and ``discovery`` are
ours: ``increment`` says what a rewrite adds, not what it pushes out of a page of fixed size, and
few of the products that a rewrite adds were ever graded by people.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from rapidfuzz.distance import Levenshtein

RewardName = Literal[
    "relevance", "productivity", "increment", "discovery", "gain", "rules", "agreement"
]

GAIN_SCALE = 4.0
"""Recall of a fusion changes by hundredths, the other rewards by tenths."""
ENOUGH_DIFFERENCE = 0.05
"""Edit distance, as a share of the longer text, from which a rewrite differs enough: one letter of
twenty, which is what a correction may need."""
EXTRA_WORDS = 2
LENGTH_RATIO = 1.5
"""A rewrite of a query of n words is too long from ``LENGTH_RATIO * n + EXTRA_WORDS``."""
HARM = 0.05
KEEP_OWN = 0.6
REJECT_OWN = 0.2
SAME = 0.9
WORSE = 0.6
FAIR = 0.5
"""Judge score of first results from which a query can be said to find what it asks for."""
WELCOME = 0.75
"""Judge score of a new product, as a share of the query's own first results, from which it is
welcome."""


def relevance(scores: Sequence[float]) -> float:
    """Mean judge score in [0, 1] of the first results; 0 if there are none."""
    return sum(scores) / len(scores) if scores else 0.0


def productivity(found: Collection[str], engaged: Collection[str]) -> float:
    """|found and engaged| / |engaged|; 0 if nothing is known to engage."""
    return len(set(engaged).intersection(found)) / len(engaged) if engaged else 0.0


def increment(found: Collection[str], plain: Collection[str], engaged: Collection[str]) -> float:
    """|engaged, found and not in plain| / |engaged|; 0 if nothing is known to engage."""
    return productivity(set(found).difference(plain), engaged)


def gain(fused: float, plain: float) -> float:
    """``GAIN_SCALE * (fused - plain)`` within [-1, 1], of two recalls at one budget."""
    return max(-1.0, min(1.0, GAIN_SCALE * (fused - plain)))


def met(value: float, bar: float) -> float:
    """``value / bar``, at most 1: how far a bar is met; 1 if there is none (0)."""
    return min(1.0, value / bar) if bar > 0 else 1.0


def discovery(scores: Sequence[float | None], plain_first: float) -> float:
    """Mean over the first results of ``2 * (score - bar)`` of those that are new, within [-1, 1].

    New products of fair relevance are what a rewrite is for, and new ones that have nothing to do
    with the query are what it must not bring; what the query finds by itself counts for nothing.

    Args:
        scores: judge scores of a rewrite's first results; ``None`` where the query alone finds it.
        plain_first: mean judge score of the query's own first results, of which the bar is
            :data:`WELCOME`.
    """
    if not scores:
        return 0.0
    bar = WELCOME * max(plain_first, FAIR)
    total = sum(2.0 * (score - bar) for score in scores if score is not None)
    return max(-1.0, min(1.0, total / len(scores)))


def rules(
    query: str, text: str, *, copies: int, group: int, known: float, broad: bool, added: bool
) -> float:
    """The product of seven guards, each 1 where there is nothing to object to.

    * length: ``limit / n`` for ``n`` words beyond ``limit = 1.5 * (words of the query) + 2``;
    * difference: ``d / 0.05`` below an edit distance of ``d = 0.05`` of the longer text;
    * stuffing: distinct words / words;
    * repeats: ``1 - (copies - 1) / group`` for a text that ``copies`` samples of a group have;
    * known: share of words that the catalogue or the query has (to a search engine that takes any
      word, "clade garden hose" is as good as "garden hose");
    * specific: 0 for one broad word that retrieves everything;
    * another wording: 0 for the query with words added ("outdoor rug in white").

    Args:
        query: normalised.
        text: the rewrite, normalised and not empty.
        copies: samples of the group that say the same, this one included.
        group: samples in the group.
        known: share of the words of ``text`` that are in some title or in the query.
        broad: every word of ``text`` is in so many titles that it asks for nothing in particular,
            which is not so of the query.
        added: the text says all that the query says, and more.
    """
    words = text.split()
    limit = LENGTH_RATIO * len(query.split()) + EXTRA_WORDS
    length = min(1.0, limit / len(words))
    distance = Levenshtein.normalized_distance(query, text)
    difference = min(1.0, distance / ENOUGH_DIFFERENCE)
    stuffing = len(set(words)) / len(words)
    repeats = 1.0 - (copies - 1) / group
    return 0.0 if broad or added else length * difference * stuffing * repeats * known


def verdict(
    *, own: float, base: float, change: float, first: float, plain_first: float
) -> bool | None:
    """Whether a rewrite is relevant, by people's grades, and by the judge where they say nothing.

    Args:
        own: recall by the rewrite's results alone.
        base: recall by the query's.
        change: recall of the two fused less ``base``.
        first: mean judge score of the rewrite's first results for the query.
        plain_first: the same of the query's own first results.

    Returns:
        ``None`` for what is between.
    """
    if change < -HARM or (base > 0 and own <= REJECT_OWN * base):
        return False
    if change >= 0 and own > 0 and own >= KEEP_OWN * base:
        return True
    ratio = first / max(plain_first, FAIR)
    if ratio >= SAME:
        return True
    return False if ratio <= WORSE else None


def agreement(tag: bool, truth: bool | None) -> float:
    """1 if the model's tag is the verdict, 0 if not, 0.5 if there is none."""
    return 0.5 if truth is None else float(tag == truth)


@dataclass(frozen=True, slots=True)
class Rewards:
    """All rewards of one sample."""

    relevance: float = 0.0
    productivity: float = 0.0
    increment: float = 0.0
    discovery: float = 0.0
    gain: float = 0.0
    rules: float = 0.0
    agreement: float = 0.0

    def fused(self, weights: Mapping[RewardName, float]) -> float:
        """``sum of weight * reward``; a reward without a weight does not count."""
        return sum(weight * float(getattr(self, name)) for name, weight in weights.items())


DROPPED = Rewards(rules=-1.0)
"""Of a sample that the service would drop for its form: it takes the place of one that it would
not. Without this the query itself is the safe thing to say."""
