"""Pairs to judge that need no human grade: what the catalogue alone says of two queries.

People graded few products, of few queries. Which queries find the same products the search engine
knows for any text, and a model that has learnt it judges better what nobody graded: on the
development fold, the share of a query's first ten results that its rewrite finds too tells
relevant from irrelevant pairs with an AUC of 0.79 by itself, and adds to what a tagger trained on
graded pairs alone already knows.

For a query ``q`` with first results P (ten) and another text ``r``, ``r`` is judged relevant if
its own 100 results hold at least half of P, and irrelevant if they hold at most a tenth.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence

from training.data.folds import compact
from training.data.pairs import MIN_ENDINGS, QueryPairs, Scored, World, is_echo, phrases
from training.data.search import SearchIndex

FIRST = 10
"""Results of the query that its rewrite should find again."""
AGREE = 0.5
DIFFER = 0.1
COHERENT = 5
"""Titles that must hold all of a query's words, or its first results are of several kinds."""
MAX_RELEVANT = 6
MAX_IRRELEVANT = 8
_FAR = 20
"""Rank from which a result's title gives phrases that look alike and mean something else."""


class CatalogueMiner:
    """Pairs to judge out of the catalogue and the queries that may be learnt from.

    Args:
        world: the catalogue and its search engine; its grades are not looked at.
        allowed: queries that may occur on either side of a pair.
        seed: of every choice.
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
        self._world, self._seed, self._protected = world, seed, protected
        self._titles = sorted(world.titles.values())
        spelt = [q for q in allowed if q not in world.corrections]
        self._allowed = spelt
        self._queries = SearchIndex({q: q for q in spelt})
        lasts = Counter(q.split()[-1] for q in spelt)
        self._endings = {word for word, count in lasts.items() if count >= MIN_ENDINGS}
        self._words = {word for q in spelt for word in q.split()}

    def mine(self, count: int) -> Iterator[QueryPairs]:
        """Up to ``count`` queries with pairs to judge, half of them phrases of titles."""
        rng = random.Random(self._seed)
        seen: set[str] = set()
        made = 0
        for _ in range(4 * count):
            if made == count or not self._titles:
                return
            if made % 2 and self._allowed:
                query = rng.choice(self._allowed)
            else:
                found = self._phrases(rng.choice(self._titles))
                query = rng.choice(found) if found else ""
            form = compact(query)
            if not form or form in seen or form in self._protected:
                continue
            seen.add(form)
            pairs = self._judge(query, rng)
            if pairs.accept and pairs.reject:
                made += 1
                yield pairs

    def _judge(self, query: str, rng: random.Random) -> QueryPairs:
        pairs = QueryPairs(query)
        first = frozenset(self._world.plain(query)[:FIRST])
        if len(first) < FIRST or self._world.index.matches_all(query) < COHERENT:
            return pairs
        texts = self._candidates(query, rng)
        rng.shuffle(texts)
        used = {compact(query)}
        for text in texts:
            form = compact(text)
            if form in used or form in self._protected or is_echo(query, text):
                continue
            used.add(form)
            own = len(first.intersection(self._world.index.search(text))) / FIRST
            scored = Scored(text, "catalogue", own, 0.0)
            if own >= AGREE and len(pairs.accept) < MAX_RELEVANT:
                pairs.accept.append(scored)
            elif own <= DIFFER and len(pairs.reject) < MAX_IRRELEVANT:
                pairs.reject.append(scored)
        return pairs

    def _candidates(self, query: str, rng: random.Random) -> list[str]:
        """Queries and phrases near to ``query``, and near to what it finds."""
        results = [self._world.titles[p] for p in self._world.plain(query)]
        texts = self._queries.search(query, 12)
        for title in rng.sample(results[:FIRST], min(3, len(results))):
            texts += self._queries.search(title, 5)
        for part, count in ((results[:FIRST], 6), (results[_FAR:], 6)):
            found = [p for title in part for p in self._phrases(title)]
            texts += rng.sample(found, min(count, len(found)))
        return list(dict.fromkeys(texts))

    def _phrases(self, title: str) -> list[str]:
        """Those phrases of a title that begin and end as people's queries do."""
        return [
            p
            for p in dict.fromkeys(phrases(title))
            if p.split()[-1] in self._endings and p.split()[0] in self._words
        ]
