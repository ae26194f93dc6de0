"""Rewriters without a language model, to compare with.

* SymSpell over the words of this catalogue (:mod:`service.engine.spelling`), untagged;
* :class:`RelevanceFeedback`: RM3, query expansion by the first results.

Each is a :data:`training.evaluation.evaluate.Rewriter`. They know the catalogue and training
queries, and nothing of a query's grades. Their settings were chosen on the development fold.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

from model_store.text import normalise
from service.engine.spelling import Corrector
from training.data.dataset import Split
from training.data.pairs import World
from training.data.search import stems
from training.evaluation.evaluate import Rewriter

MIN_COUNT = 5
"""Times that a word comes from which it counts as known."""
QUERY_WEIGHT = 20
"""Titles that a training query counts for among pairs of words: shoppers ask as shoppers ask."""
_WORD = re.compile(r"[a-z]{3,}")
"""A word that may expand a query."""
_LETTERS = re.compile(r"(?<![^\W_])[a-z]+(?![^\W_])")
_TOKEN = re.compile(r"[a-z0-9]+")
_ADJACENT = re.compile(r"[a-z]+|[^a-z\s]")


def vocabulary(titles: Iterable[str], queries: Iterable[str] = ()) -> Counter[str]:
    """How often each word of letters alone comes in titles and queries, in lower case."""
    counts: Counter[str] = Counter()
    for text in (*titles, *queries):
        counts.update(_LETTERS.findall(normalise(text, fold_case=True)))
    return counts


def spelling_words(world: World, parts: Split, more: Sequence[str] = ()) -> dict[str, int]:
    """Words of the catalogue and of training queries in correct spelling, with their counts.

    Rare words (:data:`MIN_COUNT`) are left out: most are slips themselves. ``more`` are titles of
    other shops.
    """
    queries = [world.corrections.get(q, q) for q in parts.train]
    counts = vocabulary([*world.titles.values(), *more], queries)
    return {word: count for word, count in counts.items() if count >= MIN_COUNT}


def spelling_pairs(
    world: World, parts: Split, words: Mapping[str, int], more: Sequence[str] = ()
) -> dict[tuple[str, str], int]:
    """Pairs of ``words`` that follow each other in titles and in corrected training queries.

    A query counts :data:`QUERY_WEIGHT` times; rare pairs (:data:`MIN_COUNT`) are left out.
    """
    counts: Counter[tuple[str, str]] = Counter()
    queries = [world.corrections.get(q, q) for q in parts.train]
    titles = [*world.titles.values(), *more]
    for texts, weight in ((titles, 1), (queries, QUERY_WEIGHT)):
        for text in texts:
            for pair in pairwise(_ADJACENT.findall(normalise(text, fold_case=True))):
                if pair[0] in words and pair[1] in words:
                    counts[pair] += weight
    return {pair: count for pair, count in counts.items() if count >= MIN_COUNT}


def corrections_by(corrector: Corrector) -> Rewriter:
    """The corrected query as the one rewrite; none if nothing is to correct."""

    def rewrites(query: str) -> list[str]:
        text = corrector(query)
        return [] if text is None else [text]

    return rewrites


class RelevanceFeedback:
    """RM3 pseudo-relevance feedback over the search engine of the evaluation.

    The first ``docs`` titles ``d`` of a query's results stand for what is relevant (RM1, Lavrenko
    and Croft, "Relevance-based language models", SIGIR 2001)::

        P(w | R) ~ sum over d of P(w | d) P(q | d)
        P(w | d) = tf(w, d) / |d|
        P(q | d) = product over the query's terms t of (tf(t, d) + mu P(t | C)) / (|d| + mu)

    and are mixed with the query's own words (RM3, Abdul-Jaleel et al., "UMass at TREC 2004")::

        P'(w) = original P(w | q) + (1 - original) P(w | R),    P(w | q) = 1 / |q| for its terms

    A rewrite is text, which has no place for weights: it is the query and the ``terms`` words that
    are new to it and have the highest ``P'(w)``. For a new word that is the order of ``P(w | R)``,
    so ``original`` cannot matter and is not asked for.
    Words with digits, of one or two letters, and stop words do not expand a query (sizes and
    units, which would come first otherwise). A stem is written as it most often is in the titles.

    Args:
        world: catalogue and search engine.
        docs: results to learn from.
        terms: words to add.
        single: add each word by itself, as a rewrite of its own, instead of all to one.
        mu: Dirichlet's prior, in words; titles have a dozen words, so it is small.
    """

    def __init__(
        self,
        world: World,
        *,
        docs: int = 10,
        terms: int = 2,
        single: bool = False,
        mu: float = 10.0,
    ) -> None:
        self._world, self._docs, self._terms = world, docs, terms
        self._single, self._mu = single, mu
        self._titles = {p: _terms(title) for p, title in world.titles.items()}
        self._collection = Counter(t for title in self._titles.values() for t, _ in title)
        self._size = sum(self._collection.values())

    def __call__(self, query: str) -> list[str]:
        """Rewrites, best first; none if nothing is found or nothing is new."""
        asked = set(stems(query))
        ranked = [w for t, w in self.model(query) if t not in asked and _WORD.fullmatch(w)]
        chosen = ranked[: self._terms]
        if self._single:
            return [f"{query} {word}" for word in chosen]
        return [" ".join([query, *chosen])] if chosen else []

    def model(self, query: str) -> list[tuple[str, str]]:
        """Stems of the first results by falling P(w | R), each with its commonest spelling."""
        results = self._world.plain(query)[: self._docs]
        weights = self._likelihoods(stems(query), results)
        model: dict[str, float] = defaultdict(float)
        spellings: dict[str, Counter[str]] = defaultdict(Counter)
        for product, weight in zip(results, weights, strict=True):
            title = self._titles[product]
            for term, word in title:
                model[term] += weight / len(title)
                spellings[term][word] += 1
        order = sorted(model, key=lambda t: (-model[t], t))
        return [(t, min(spellings[t], key=lambda w: (-spellings[t][w], w))) for t in order]

    def _likelihoods(self, terms: Sequence[str], products: Sequence[str]) -> list[float]:
        """P(q | d) of each product, up to a common factor."""
        logs = []
        for product in products:
            title = self._titles[product]
            counts = Counter(t for t, _ in title)
            # A term that no title has would make every product impossible: it says nothing.
            logs.append(
                sum(
                    math.log(
                        (counts[t] + self._mu * self._collection[t] / self._size)
                        / (len(title) + self._mu)
                    )
                    for t in terms
                    if self._collection[t]
                )
            )
        top = max(logs, default=0.0)
        return [math.exp(value - top) for value in logs]


def _terms(title: str) -> list[tuple[str, str]]:
    """(stem, word) of each word of a title that the search engine indexes, repeats kept."""
    found = []
    for word in _TOKEN.findall(title.lower()):
        stem = stems(word)
        if stem:
            found.append((stem[0], word))
    return found


def baselines(world: World, parts: Split) -> dict[str, Rewriter]:
    """Every baseline at the settings that the development fold chose, by its name in tables."""
    return {
        "SymSpell": corrections_by(Corrector(spelling_words(world, parts))),
        "RM3": RelevanceFeedback(world, docs=20, terms=4, single=True, mu=1.0),
    }
