"""Pairs of all departments: the data source ``general``.

Curated queries with hard negatives by rule and with each other's rewrites, corrections of them
misspelt, real words and codes that are right as they are, negations said in other ways, and text
that is no query. Home Depot's mined pairs come beside them (:mod:`training.data.dataset`).
"""

from __future__ import annotations

import random
import string
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from model_store.text import normalise
from training.data.curated_pairs import CuratedQuery, CuratedSplit, swapped
from training.data.folds import compact
from training.data.hard_negatives import (
    HardNegatives,
    NearWords,
    brand_rivals,
    negated,
    same_negation,
)
from training.data.noise import Slips, corrupt, rewrite_units
from training.data.pairs import QueryPairs, Scored, is_echo, phrases
from training.data.shops import (
    SHOPS,
    Slip,
    english_words,
    read_slips,
    read_synonyms,
    read_synsets,
    read_titles,
    title_words,
)

_WRITTEN = 4
"""Right rewrites of a curated query that are written; the others are only judged."""
_FORMS = frozenset({"word_form", "broader"})
"""Kinds that are judged and not written, or the model writes inflections where it knows better."""


@dataclass(frozen=True, slots=True)
class Mix:
    """How many queries of each kind are in one pass beside the curated ones."""

    corrections: int = 2400
    titles: int = 300
    words: int = 500
    negations: int = 300
    codes: int = 80
    nonsense: int = 150
    synonyms: int = 2000


class General:
    """What the passes are made of.

    Args:
        curated: the split; only its training part is learnt from.
        titles: of all shops, normalised.
        slips: known misspellings.
        more_slips: further (typed, meant) texts, such as a shop's corrected queries.
        synonyms: pairs of terms.
    """

    def __init__(
        self,
        curated: CuratedSplit,
        titles: Sequence[str],
        slips: Sequence[Slip],
        more_slips: Sequence[tuple[str, str]] = (),
        synonyms: Sequence[tuple[str, str]] = (),
    ) -> None:
        self.curated = curated
        self._titles, self._synonyms = titles, synonyms
        self._slips = Slips(
            [(s.wrong, s.right) for s in slips if s.weight > 1] + 10 * list(more_slips)
        )
        self._misspelt: dict[str, list[Slip]] = defaultdict(list)
        for slip in slips:
            self._misspelt[slip.right].append(slip)
        self._title_words = title_words(titles, 5)
        known = english_words() | self._title_words
        curated_words = {
            w for q in curated.train for r in q.right for w in r.text.split() if w.isalpha()
        }
        self._near = NearWords(
            known | {w: known.get(w, 5) for w in curated_words},
            frozenset((s.wrong, s.right) for s in slips if s.weight > 1),
        )
        self._wrong = HardNegatives(self._near, brand_rivals(curated.train))

    @classmethod
    def read(
        cls, folder: Path, curated: CuratedSplit, more_slips: Sequence[tuple[str, str]] = ()
    ) -> General:
        """Everything out of the data folder.

        Raises:
            DataError: a file is missing.
        """
        titles = read_titles(folder)
        synonyms = [*read_synonyms(folder), *read_synsets(folder, titles)]
        return cls(curated, titles, read_slips(folder), more_slips, synonyms)

    @property
    def protected(self) -> frozenset[str]:
        """Compact forms of queries that are kept out."""
        return self.curated.protected

    def one_pass(self, seed: int, mix: Mix = Mix()) -> list[QueryPairs]:
        """Pairs of every curated training query, and of the others as the mix says, shuffled.

        Another seed gives other negatives and other misspellings.
        """
        rng = random.Random(seed)
        made = [
            *self._curated_pairs(rng, seed),
            *_first(mix.corrections, self._corrections(rng)),
            *_first(mix.titles, self._title_corrections(rng)),
            *_first(mix.words, self._words(rng)),
            *_first(mix.negations, self._negations(rng)),
            *_first(mix.codes, _codes(rng)),
            *_first(mix.nonsense, self._nonsense(rng)),
            *self._terms(rng, mix.synonyms),
        ]
        kept = [p for p in made if compact(p.query) not in self.curated.protected]
        rng.shuffle(kept)
        return kept

    def to_judge(self, queries: Sequence[CuratedQuery], seed: int) -> Iterator[QueryPairs]:
        """All pairs of curated queries to judge, with one swapped for each."""
        lent = swapped(queries, 1, seed)
        for query in queries:
            yield _pairs(
                query.query,
                accept=[r.text for r in query.right],
                reject=[*(w.text for w in query.wrong), *lent[query.query]],
            )

    def _curated_pairs(self, rng: random.Random, seed: int) -> Iterator[QueryPairs]:
        queries = self.curated.train
        lent, near = swapped(queries, 1, seed), swapped(queries, 1, seed, near=True)
        for query in queries:
            right = [r.text for r in query.right]
            best = [r.text for r in query.right if r.kind not in _FORMS][:_WRITTEN]
            rest = [text for text in right if text not in best]
            accept = rng.sample(rest, min(2, len(rest)))
            wrong = [w.text for w in query.wrong]
            if len(wrong) > 6:
                wrong = rng.sample(wrong, 6)
            if right:
                ruled = [r.text for r in self._wrong.of(query.corrected, 2, rng, right)]
                if query.corrected != query.query:
                    ruled[1:] = self._wrong.confused(query.corrected, rng)[:1]
                elif (units := rewrite_units(query.query, rng)) != query.query:
                    accept.append(normalise(units, fold_case=True))
                wrong += [*ruled, *lent[query.query], *near[query.query]]
                if said := same_negation(query.query):
                    wrong += self._wrong.turned(query.query, rng)[:2]
                accept += rng.sample(said, min(1, len(said)))
            yield _pairs(query.query, best, accept, wrong)

    def _corrections(self, rng: random.Random) -> Iterator[QueryPairs]:
        """Curated queries, or right rewrites of them, misspelt."""
        queries = [q for q in self.curated.train if q.right]
        while queries:
            query = rng.choice(queries)
            texts = [query.corrected, *(r.text for r in query.right)]
            meant = query.corrected if rng.random() < 0.7 else rng.choice(texts)
            if (typed := self._misspell(meant, rng)) is None:
                continue
            other = [t for t in texts if not is_echo(t, meant)]
            wrong = [w.text for w in query.wrong]
            yield _pairs(
                typed,
                write=[meant, *(rng.sample(other, 1) if other and rng.random() < 0.3 else [])],
                accept=rng.sample(other, min(1, len(other))),
                reject=[
                    *self._wrong_corrections(meant, typed, rng),
                    *rng.sample(wrong, min(1, len(wrong))),
                ],
            )

    def _title_corrections(self, rng: random.Random) -> Iterator[QueryPairs]:
        while True:
            found = list(phrases(rng.choice(self._titles)))
            if not found:
                continue
            meant = rng.choice(found)
            if not all(w in self._near or not w.isalpha() for w in meant.split()):
                continue
            if (typed := self._misspell(meant, rng)) is not None:
                wrong = self._wrong_corrections(meant, typed, rng)
                ruled = [r.text for r in self._wrong.of(meant, 1, rng)]
                yield _pairs(typed, write=[meant], reject=[*wrong, *ruled])

    def _misspell(self, text: str, rng: random.Random) -> str | None:
        """``text`` mistyped into what is no word; ``None`` if that fails."""
        words = text.split()
        known = [i for i, word in enumerate(words) if word in self._misspelt]
        if known and rng.random() < 0.5:
            at = rng.choice(known)
            slips = self._misspelt[words[at]]
            words[at] = rng.choices(slips, [s.weight for s in slips])[0].wrong
            typed = " ".join(words)
        else:
            typed = normalise(corrupt(text, rng, self._slips), fold_case=True)
        changed = set(typed.split()).difference(text.split())
        if not typed or typed == text or is_echo(typed, text) or not changed:
            return None
        if len(typed.split()) == len(text.split()) and changed & set(self._title_words):
            return None
        return typed

    def _wrong_corrections(self, meant: str, typed: str, rng: random.Random) -> list[str]:
        """The text with another real word for the misspelt one, and with another slip of it."""
        pairs = list(zip(meant.split(), typed.split(), strict=False))
        changed = [i for i, (a, b) in enumerate(pairs) if a != b]
        if len(meant.split()) != len(typed.split()) or len(changed) != 1:
            return self._wrong.confused(meant, rng)[:1]
        at = changed[0]
        right, slip = pairs[at]
        near = list(dict.fromkeys(self._near.near(slip) + self._near.near(right)))
        found = [w for w in near if w != right]
        chosen = rng.sample(found[:8], min(2, len(found)))
        if rng.random() < 0.3 and (other := corrupt(right, rng, self._slips)) not in (right, slip):
            chosen.append(other)
        words = meant.split()
        texts = [" ".join([*words[:at], word, *words[at + 1 :]]) for word in chosen]
        return [text for text in texts if not is_echo(text, meant)]

    def _words(self, rng: random.Random) -> Iterator[QueryPairs]:
        """Real words alone, and two of them: right as they are, and no others."""
        singles = sorted(w for w, n in self._title_words.items() if n >= 15 and len(w) >= 3)
        while singles:
            word = rng.choice(singles)
            near = self._near.near(word, 8)
            form = word[:-1] if word.endswith("s") else word + "s"
            accept = [form] if rng.random() < 0.7 and form in self._title_words else []
            typed = self._misspell(word, rng) if rng.random() < 0.2 else None
            reject = [*rng.sample(near, min(3, len(near))), *([typed] if typed else [])]
            if reject:
                yield _pairs(word, accept=accept, reject=reject)

    def _negations(self, rng: random.Random) -> Iterator[QueryPairs]:
        """A product without something that it may have; never with it, and never just it."""
        products = [q for q in self.curated.train if q.right and len(q.corrected.split()) <= 3]
        while products:
            query = rng.choice(products)
            text, feature = negated(query.corrected, rng)
            said = same_negation(text)
            other = query.right[0].text
            alike = [t.replace(query.corrected, other) for t in said if query.corrected in t]
            rng.shuffle(alike)
            wrong = self._wrong.turned(text, rng)
            yield _pairs(
                text,
                write=[*alike[:1], *rng.sample(said, min(1, len(said)))],
                accept=said[:2],
                reject=[*wrong[:3], f"{other} with {feature}", query.corrected],
            )

    def _nonsense(self, rng: random.Random) -> Iterator[QueryPairs]:
        """Strings of letters, to which nothing is right."""
        lenders = [q.corrected for q in self.curated.train]
        while lenders:
            words = [_letters(rng, 3, 9) for _ in range(rng.randint(1, 3))]
            near = [n for w in words for n in self._near.near(w, 2)]
            reject = [rng.choice(lenders), *(near[:2])]
            if near:
                reject.append(f"{rng.choice(near)} {rng.choice(lenders)}")
            yield _pairs(" ".join(words), reject=reject)

    def _terms(self, rng: random.Random, count: int) -> Iterator[QueryPairs]:
        for term, other in rng.sample(list(self._synonyms), min(count, len(self._synonyms))):
            wrong = [r.text for r in self._wrong.of(term, 2, rng, [other])]
            wrong.append(rng.choice(self._synonyms)[1])
            write, accept = ([], [other]) if is_echo(term, other) else ([other], [])
            yield _pairs(term, write, accept, wrong)


def general_files(folder: Path) -> list[Path]:
    """The files of the data folder that :class:`General` reads."""
    return [
        *(folder / "shops" / shop / "products.tsv" for shop in SHOPS),
        folder / "spelling" / "pairs.tsv",
        folder / "term_pairs" / "amazon_us.tsv",
        folder / "lexicon" / "wordnet_product_synsets.tsv",
    ]


def _letters(rng: random.Random, least: int, most: int) -> str:
    return "".join(rng.choices(string.ascii_lowercase, k=rng.randint(least, most)))


def _codes(rng: random.Random) -> Iterator[QueryPairs]:
    """Model numbers, which are right to the letter."""
    while True:
        letters = _letters(rng, 1, 4)
        digits = "".join(rng.choices(string.digits, k=rng.randint(2, 5)))
        tail = _letters(rng, 0, 3)
        code = letters + digits + tail
        at = rng.randrange(len(letters), len(letters + digits))
        changed = code[:at] + rng.choice(string.digits) + code[at + 1 :]
        cut = code[:-1]
        other = _letters(rng, 1, 1) + code[1:]
        wrong = [text for text in (changed, cut, other, digits, letters) if text != code]
        yield _pairs(
            code,
            accept=[rng.choice([f"{letters} {digits}{tail}", f"{letters}-{digits}{tail}"])],
            reject=rng.sample(wrong, 3),
        )


def _pairs(
    query: str,
    write: Sequence[str] = (),
    accept: Sequence[str] = (),
    reject: Sequence[str] = (),
) -> QueryPairs:
    """The pairs of a query, each text once, in the first list that has it."""
    seen = {query}

    def fresh(texts: Sequence[str], own: float) -> list[Scored]:
        found = []
        for text in texts:
            if text and text not in seen:
                seen.add(text)
                found.append(Scored(text, "general", own, own))
        return found

    return QueryPairs(query, fresh(write, 1.0), fresh(accept, 1.0), fresh(reject, 0.0))


def _first(count: int, pairs: Iterator[QueryPairs]) -> Iterator[QueryPairs]:
    for _, one in zip(range(count), pairs, strict=False):
        yield one
