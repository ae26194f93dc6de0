"""Pair mining: which rewrites to learn to write, and which pairs to learn to judge.

Everything is judged by the search engine against human grades. For a query ``q`` with relevant
products R (grade >= 2.33) and a candidate rewrite ``r``:

* ``own(r)``  = recall@100 of R by the results of ``r`` alone;
* ``gain(r)`` = recall@100 of R by q and r fused, less that of q alone (equal budget of 100).

Candidates come from corrected spellings, from queries that share a relevant product, from small
edits of q (words joined, split or left out) and from phrases of relevant titles. Kept as something
to *write* (rejection sampling): no echo of q, ``own(r)`` at least 60 % of q's own recall, and
``gain(r)`` not negative (of an edit: positive). A phrase of a title must also name the need. A
corrected spelling is kept unless it costs more than 0.05 recall, and may differ from q in a space
alone ("lawnmower": the search engine takes the two for different words).
*Negatives* to judge: queries that look alike but share no product, phrases of products judged
bad for q, and model samples, each with ``own(r)`` at most 20 % of q's.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import polars as pl

from model_store.text import normalise
from service.filtering.guards import Brands
from service.filtering.words import words
from training.data.brands import brands
from training.data.folds import compact
from training.data.schema import GRADE_BAD, GRADE_ENGAGED, GRADE_RELEVANT, Tables
from training.data.search import DEPTH, SearchIndex, fuse, recall, stems

KEEP_OWN = 0.6
ACCEPT_OWN = 0.5
REJECT_OWN = 0.2
RARE = 150
"""Titles that hold a word, up to which the word alone says what kind of thing it is."""
MIN_ENDINGS = 3
"""Queries that must end in a word before it counts as the name of a thing."""
MAX_TITLES = 2
"""Most phrases of titles to write for one query: people's own words come first."""
MAX_LOSS_OF_CORRECTION = 0.05
"""A search engine's own correction is kept even if it costs this much recall."""
STRAY = 0.1
"""Clicks on a product, as a share of those on the query's most clicked one, below which they are
strays: somebody went on to look at something else."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A candidate rewrite and what the search engine says of it."""

    text: str
    source: str
    own: float
    gain: float


@dataclass(slots=True)
class QueryPairs:
    """Training pairs of one query (all text normalised).

    Attributes:
        write: rewrites to learn to write, best first; each is also a positive to judge.
        accept: further positives, to judge only.
        reject: negatives, to judge only.
    """

    query: str
    write: list[Scored] = field(default_factory=list)
    accept: list[Scored] = field(default_factory=list)
    reject: list[Scored] = field(default_factory=list)


class World:
    """A source's tables as lookups, with the search engine over its catalogue.

    Queries are in normal form; spellings that fold to one form share their grades.

    Args:
        tables: the source's.
        depth: products that a search returns.
    """

    def __init__(self, tables: Tables, depth: int = DEPTH) -> None:
        self.depth = depth
        self.titles: dict[str, str] = dict(tables.catalogue.iter_rows())
        self.index = SearchIndex(self.titles)
        self.canonical: dict[str, str] = {}
        self.raw: dict[str, str] = {}
        for query, canonical, _ in tables.queries.iter_rows():
            form = normalise(query, fold_case=True)
            self.canonical.setdefault(form, canonical)
            self.raw.setdefault(form, query)
        self.grades: dict[str, dict[str, float]] = defaultdict(dict)
        for query, product, grade in tables.judgements.iter_rows():
            if product in self.titles:
                self.grades[normalise(query, fold_case=True)][product] = grade
        for query, products in _engaged(tables.interactions).items():
            for product in products:
                # A click is taken for a relevant, engaged product where no grade is known.
                if product in self.titles:
                    self.grades[query].setdefault(product, GRADE_ENGAGED)
        self.corrections: dict[str, str] = {}
        for query, rewrite, _ in tables.rewrites.iter_rows():
            form, target = (normalise(t, fold_case=True) for t in (query, rewrite))
            if form in self.canonical and target and target != form:
                self.corrections[form] = target
        self.relevant: dict[str, frozenset[str]] = {
            query: frozenset(p for p, g in grades.items() if g >= GRADE_RELEVANT)
            for query, grades in self.grades.items()
        }
        self._plain: dict[str, list[str]] = {}

    def meant(self, query: str) -> str:
        """The query in its corrected spelling, if one is known."""
        return self.corrections.get(query, query)

    def misspelt(self, form: str, query: str) -> None:
        """Add a misspelling ``form`` of ``query``."""
        self.corrections[form] = self.meant(query)
        self.grades[form], self.relevant[form] = self.grades[query], self.relevant[query]

    def plain(self, query: str) -> list[str]:
        """Results of the query alone (top ``depth``), remembered."""
        if query not in self._plain:
            self._plain[query] = self.search(query)
        return self._plain[query]

    def search(self, text: str) -> list[str]:
        """Results of any text (top ``depth``)."""
        return self.index.search(text, self.depth)

    def score(self, query: str, rewrite: str, source: str) -> Scored:
        """``own`` and ``gain`` of a rewrite; the query must have a relevant product."""
        wanted = self.relevant[query]
        results = self.search(rewrite)
        base = self.plain(query)
        gain = recall(fuse([base, results], self.depth), wanted) - recall(base, wanted)
        return Scored(rewrite, source, recall(results, wanted), gain)

    def with_relevant(self, queries: Iterable[str]) -> list[str]:
        """Those queries that have at least one relevant product."""
        return [q for q in queries if self.relevant.get(q)]


def _engaged(interactions: pl.DataFrame) -> dict[str, list[str]]:
    """Normalised query -> engaged products without stray ones (:data:`STRAY`)."""
    counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for query, product, count in interactions.select("query", "product_id", "count").iter_rows():
        counts[normalise(query, fold_case=True)][product] += count
    return {
        query: [p for p, n in products.items() if n >= STRAY * max(products.values())]
        for query, products in counts.items()
    }


def is_echo(query: str, rewrite: str) -> bool:
    """True if the two differ only in case, punctuation, word order or inflection.

    Words joined or split are no echo: a search engine finds other products by them.
    """
    return set(stems(query)) == set(stems(rewrite))


def is_trivial(query: str, rewrite: str) -> bool:
    """True if the two differ only in case, space, punctuation or a plural."""
    return "".join(words(query)) == "".join(words(rewrite))


_ASIDE = re.compile(r"\([^)]*\)|[\"*]")
_EDGE = frozenset(
    "with in for and of the a an to by - x or on & / in. ft. sq. no.".split()  # noqa: SIM905 - reads
)


def phrases(title: str) -> Iterator[str]:
    """Runs of 2-4 words of a title that could stand as a query (normalised)."""
    words = normalise(_ASIDE.sub(" ", title), fold_case=True).replace(",", " ").split()
    for size in (2, 3, 4):
        for start in range(len(words) - size + 1):
            run = words[start : start + size]
            edges = (run[0], run[-1])
            if any(e in _EDGE or e.startswith("#") for e in edges) or not any(
                w.isalpha() for w in run
            ):
                continue
            yield " ".join(run).strip(".")


class PairMiner:
    """Mines pairs for queries of a world.

    Args:
        world: the data and its search engine.
        allowed: queries that may occur, as source or as target. Held-out ones must not be in it.
        seed: of the sampling of phrases; the result depends on nothing else.
        protected: compact forms (:func:`training.data.folds.compact`) of text that must not be
        learnt.
    """

    def __init__(
        self,
        world: World,
        allowed: Sequence[str],
        seed: int,
        protected: frozenset[str] = frozenset(),
    ) -> None:
        self._world = world
        self._protected = protected
        self._allowed = world.with_relevant(allowed)
        self._seed = seed
        self._by_product: dict[str, list[str]] = defaultdict(list)
        for query in self._allowed:
            for product in sorted(world.relevant[query]):
                self._by_product[product].append(query)
        self._queries = SearchIndex({q: q for q in self._allowed})
        lasts = Counter(q.split()[-1] for q in self._allowed)
        self._last_words = {word for word, count in lasts.items() if count >= MIN_ENDINGS}
        self._words = {word for q in self._allowed for word in q.split()}
        self._brands = Brands(brands(world.titles.values()))

    def mine(self, query: str, max_write: int = 4, max_judge: int = 4) -> QueryPairs:
        """All pairs of one query; it must have a relevant product.

        There are at most ``max_judge`` negatives and half as many positives beside those to write.
        For a misspelt query, little more than its correction is written, so that the model prefers
        it.
        """
        world, rng = self._world, random.Random(f"{self._seed}:{query}")
        pairs = QueryPairs(query)
        base = recall(world.plain(query), world.relevant[query])
        asked = set(stems(query)) | set(stems(world.corrections.get(query, "")))
        kept: list[Scored] = []
        for text, source in self._candidates(query, rng).items():
            if compact(text) in self._protected or (is_echo(query, text) and source != "spelling"):
                continue
            scored = world.score(query, text, source)
            if self._worth_writing(scored, base, query, asked):
                kept.append(scored)
            elif source == "title" and base > 0 and scored.own <= REJECT_OWN * base:
                pairs.reject.append(scored)
            elif source == "co-relevant" and scored.own >= ACCEPT_OWN * base:
                pairs.accept.append(scored)
        kept.sort(
            key=lambda s: (
                s.source != "spelling",
                -s.gain,
                s.source != "co-relevant",
                -len(asked.intersection(stems(s.text))),
                -s.own,
                s.text,
            )
        )
        most = min(max_write, 2) if kept and kept[0].source == "spelling" else max_write
        pairs.write = _distinct(_at_most(kept, "title", MAX_TITLES))[:most]
        written = {s.text for s in pairs.write}
        rest = [s for s in kept if s.text not in written] + pairs.accept
        half = -(-max_judge // 2)
        pairs.accept = rng.sample(rest, min(half, len(rest)))
        negatives = self._look_alikes(query, base, max_judge * 3 // 4)
        negatives += self._bad_phrases(query, base, rng, half)
        rng.shuffle(pairs.reject)
        negatives += pairs.reject[:half]
        good = {compact(s.text) for s in kept + pairs.accept}
        pairs.reject = [s for s in _distinct(negatives) if compact(s.text) not in good][:max_judge]
        return pairs

    def _candidates(self, query: str, rng: random.Random) -> dict[str, str]:
        """Text -> source of every candidate rewrite of ``query``."""
        pool: dict[str, str] = {}
        if query in self._world.corrections:
            pool[self._world.corrections[query]] = "spelling"
        for other in self._co_relevant(query):
            pool.setdefault(other, "co-relevant")
        for text in self._edits(query):
            pool.setdefault(text, "edit")
        for phrase in self._phrases(query, rng):
            pool.setdefault(phrase, "title")
        return pool

    def _edits(self, query: str) -> set[str]:
        """The query with two words joined, one split, or one left out, as the catalogue has it."""
        parts = query.split()
        titles = self._world.index
        found: set[str] = set()
        for i in range(len(parts) - 1):
            joined = parts[i] + parts[i + 1]
            if joined.isalpha() and titles.rarest_term(joined) >= 2:
                found.add(" ".join([*parts[:i], joined, *parts[i + 2 :]]))
        for i, part in enumerate(parts):
            for at in range(3, len(part) - 2) if part.isalpha() else ():
                if min(titles.rarest_term(part[:at]), titles.rarest_term(part[at:])) >= 5:
                    found.add(" ".join([*parts[:i], part[:at], part[at:], *parts[i + 1 :]]))
            if len(parts) >= 3:
                found.add(" ".join(parts[:i] + parts[i + 1 :]))
        return found

    def _worth_writing(self, scored: Scored, base: float, query: str, asked: set[str]) -> bool:
        if scored.source == "spelling":
            return scored.gain >= -MAX_LOSS_OF_CORRECTION
        if scored.own == 0 or scored.own < KEEP_OWN * base or scored.gain < 0:
            return False
        if scored.source == "edit":
            return scored.gain > 0
        return scored.source != "title" or self._names_the_need(scored, query, asked)

    def _names_the_need(self, scored: Scored, query: str, asked: set[str]) -> bool:
        """A phrase of a title must be mostly about what was asked, or be rare and bring a gain.

        Without this, whatever words a lone relevant title happens to hold would pass: the search
        engine finds that title by any of them. Numbers and brands that are not in the
        query are specific to one product, so they are never learnt.
        """
        parts, asked_parts = scored.text.split(), query.split()
        if any(p not in asked_parts for p in parts if any(c.isdigit() for c in p)):
            return False
        # A run of words that ends as real queries end is a complete name.
        if parts[-1] not in self._last_words or parts[0] not in self._words:
            return False
        if self._brands.found(scored.text) - self._brands.found(query):
            return False
        terms = stems(scored.text)
        if 2 * len(asked.intersection(terms)) >= len(terms):
            return True
        return scored.gain > 0 and self._world.index.rarest_term(scored.text) <= RARE

    def _co_relevant(self, query: str) -> list[str]:
        """Other queries by the relevant products they share, most first, in correct spelling."""
        shared: dict[str, int] = defaultdict(int)
        for product in self._world.relevant[query]:
            for other in self._by_product.get(product, ()):
                if other != query:
                    shared[other] += 1
        order = sorted(shared, key=lambda q: (-shared[q], q))[:16]
        # A misspelling must not be learnt as a rewrite.
        spelt = dict.fromkeys(self._world.corrections.get(q, q) for q in order)
        return [text for text in spelt if text != query]

    def _phrases(self, query: str, rng: random.Random) -> list[str]:
        grades = self._world.grades[query]
        counts: dict[str, int] = defaultdict(int)
        for product in sorted(p for p, g in grades.items() if g >= GRADE_ENGAGED):
            # In order, not as a set: the random numbers below go to the phrases as they come, and
            # the order of a set of strings changes from process to process.
            for phrase in dict.fromkeys(phrases(self._world.titles.get(product, ""))):
                counts[phrase] += 1
        asked = set(stems(query))
        # Phrases that several good products share come first, then those that name the need.
        order = sorted(
            counts,
            key=lambda p: (-counts[p], -len(asked.intersection(stems(p))), rng.random()),
        )
        return [p for p in order[:40] if self._world.index.matches_all(p) >= 3][:20]

    def _look_alikes(self, query: str, base: float, count: int) -> list[Scored]:
        world, wanted = self._world, self._world.relevant[query]
        found: list[Scored] = []
        if base == 0 or count == 0:
            return found
        for other in self._queries.search(query, 8 * count):
            if len(found) == count:
                break
            if other == query or is_echo(query, other) or wanted & world.relevant[other]:
                continue
            scored = world.score(query, other, "look-alike")
            if scored.own <= REJECT_OWN * base:
                found.append(scored)
        return found

    def _bad_phrases(self, query: str, base: float, rng: random.Random, count: int) -> list[Scored]:
        world = self._world
        bad = sorted(p for p, g in world.grades[query].items() if g <= GRADE_BAD)
        texts = [t for p in bad for t in phrases(world.titles.get(p, ""))]
        rng.shuffle(texts)
        found: list[Scored] = []
        for text in texts[: 6 * count]:
            if base == 0 or len(found) == count:
                break
            scored = world.score(query, text, "bad-title")
            if scored.own <= REJECT_OWN * base:
                found.append(scored)
        return found


def _at_most(items: Sequence[Scored], source: str, count: int) -> list[Scored]:
    """All items but those of ``source`` after its first ``count``."""
    left = count
    kept = []
    for item in items:
        if item.source == source:
            left -= 1
            if left < 0:
                continue
        kept.append(item)
    return kept


def _distinct(items: Sequence[Scored]) -> list[Scored]:
    """The first of each group that differs only trivially."""
    seen: set[str] = set()
    kept = []
    for item in items:
        form = compact(item.text)
        if form not in seen:
            seen.add(form)
            kept.append(item)
    return kept


def summarise(mined: Mapping[str, QueryPairs]) -> dict[str, float]:
    """Counts for the run's record."""
    values = list(mined.values())
    return {
        "queries": len(values),
        "write": sum(len(p.write) for p in values),
        "accept": sum(len(p.accept) for p in values),
        "reject": sum(len(p.reject) for p in values),
        "queries_with_gain": sum(any(s.gain > 0 for s in p.write) for p in values),
    }
