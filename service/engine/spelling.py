"""A spelling corrector that knows the language and the catalogue: one more source of candidates.

It is a noisy channel (Kernighan, Church and Gale 1990): of the words that are near to the typed
one, it proposes the likeliest by frequency, by neighbours and by the slips between the two. The
model tags its proposals, and they are filtered like any other candidate.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Self

from rapidfuzz import process
from rapidfuzz.distance import OSA

from model_store.english import COMMON, frequencies
from model_store.errors import InvalidVersion
from model_store.manifest import SpellingSpec

MAX_CHARS = 96
"""Longest query that is looked at: time grows with the unknown words, some 5 ms for each, and
nobody mistypes a whole paragraph."""
MAX_FILE_BYTES = 2**20
"""Largest file of words."""
_SHORTEST = 3
"""Letters of the shortest word that can be wrong by itself."""
_SHORTEST_PART = 3
"""Letters of the shortest part that a word is split into."""
_COUNT = re.compile(r"[1-9][0-9]{0,14}")
_SEEN = 0.9
"""Weight of the pairs that were seen against the words by themselves (Jelinek and Mercer 1980)."""
_SHOP = 0.8
"""Weight of the catalogue's frequencies against those of English."""

# Natural logarithms. Chosen on the training folds of the curated pairs and of Home Depot.
_UNKNOWN = -28.0
"""Of the probability of a word that nobody knows: a name, or another language."""
_EDIT = 8.0
"""What a whole edit costs."""
_ATTESTED = 4.0
"""What changing a rare word of English texts costs beside its edits: most of them are names."""
_LEAST = math.exp(_UNKNOWN)
_RAREST = 1e-7
"""Share in English of the rarest word that is proposed."""
_SPLIT = 3.0
"""What a missing space costs."""
_REAL_WORD = 8.0
"""What changing a known word costs beside its edits: its neighbours must speak against it."""

_VOWELS = frozenset("aeiouy")
_SOUND_ALIKE = frozenset(
    frozenset(pair)
    for pair in ("ck", "cs", "sz", "fv", "gj", "mn", "bp", "dt", "kq", "xs", "uw", "iy")
)


class Context:
    """How likely words are between their neighbours, by the words and pairs of a catalogue.

    Args:
        counts: words of the catalogue, and how often they come.
        pairs: of them that follow each other, and how often they do.
    """

    def __init__(self, counts: Mapping[str, int], pairs: Mapping[tuple[str, str], int]) -> None:
        self._counts, self._pairs = counts, pairs
        self._english = frequencies()
        self._total = max(1, sum(counts.values()))
        self._begun: Counter[str] = Counter()
        self._beside: defaultdict[str, set[str]] = defaultdict(set)
        for (left, right), count in pairs.items():
            self._begun[left] += count
            self._beside[left].add(right)
            self._beside[right].add(left)

    def knows(self, word: str) -> bool:
        """Whether it is a word of the catalogue, or common in English."""
        return word in self._counts or self._english.get(word, 0.0) >= COMMON

    def attested(self, word: str) -> bool:
        """Whether English texts hold it at all, be it as a name or as a slip."""
        return self._english.get(word, 0.0) >= _RAREST

    def seen(self, left: str, right: str) -> bool:
        """Whether the two follow each other in the catalogue."""
        return (left, right) in self._pairs

    def beside(self, left: str | None, right: str | None) -> set[str]:
        """Words that are seen behind or before either of two words."""
        found = set()
        for word in (left, right):
            if word is not None and word in self._beside:
                found |= self._beside[word]
        return found

    def fit(self, word: str, left: str | None, right: str | None) -> float:
        """Natural logarithm of ``P(word | left) P(right | word) / P(right)``.

        Args:
            word: a known word.
            left: the word before it, if there is one.
            right: the word behind it.
        """
        found = math.log(self._after(left, word))
        if right is not None and right in self._counts:
            found += math.log(self._after(word, right) / self._alone(right))
        return found

    def _after(self, left: str | None, word: str) -> float:
        alone = self._alone(word)
        if left is None or left not in self._begun:
            return alone
        seen = self._pairs.get((left, word), 0) / self._begun[left]
        return _SEEN * seen + (1 - _SEEN) * alone

    def _alone(self, word: str) -> float:
        shop = self._counts.get(word, 0) / self._total
        english = self._english.get(word, 0.0)
        return max(_SHOP * shop + (1 - _SHOP) * english, _LEAST)


class WordIndex:
    """Finds words that are few edits away, by comparing with those of about the same length.

    Args:
        words: in lower case, each once.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self._by_length: defaultdict[int, list[str]] = defaultdict(list)
        for word in words:
            self._by_length[len(word)].append(word)

    def near(self, word: str, edits: int) -> Iterator[tuple[str, int]]:
        """Other words at most ``edits`` edits away, with their edits (a swap is one)."""
        for length in range(len(word) - edits, len(word) + edits + 1):
            yield from within(word, self._by_length.get(length, ()), edits)


class Corrector:
    """Finds the words that a query's unknown words are likely meant to be.

    A word of the catalogue or of English is known, and is changed only if its neighbours make
    another far likelier ("rigid vac" beside "ridgid vac"). Only words made of letters are looked
    at: sizes, codes, signs and other writing stay. A word is split only into two known ones that
    follow each other in the catalogue.

    Args:
        counts: words of the catalogue in lower case, and how often they come.
        max_edits: most edits (neighbours swapped being one edit) of a word.
        pairs: words that follow each other in it, and how often they do.
    """

    def __init__(
        self,
        counts: Mapping[str, int],
        max_edits: int = 2,
        pairs: Mapping[tuple[str, str], int] | None = None,
    ) -> None:
        self._context = Context(counts, pairs or {})
        self._in_context = bool(pairs)
        self._max_edits = max_edits
        english = (word for word, share in frequencies().items() if share >= _RAREST)
        self._index = WordIndex(dict.fromkeys([*counts, *english]))
        self._letters = frozenset("".join(counts)) | frozenset("abcdefghijklmnopqrstuvwxyz")

    @classmethod
    def of(cls, spec: SpellingSpec, folder: Path) -> Self:
        """The corrector of a version.

        Args:
            spec: its settings in the manifest.
            folder: the version's folder, its files checked.

        Raises:
            InvalidVersion: the words, or the pairs, cannot be read.
        """
        counts = {
            words[0]: count for words, count in read_counts(folder / spec.words_file, 1).items()
        }
        if spec.pairs_file is None:
            return cls(counts, spec.max_edits)
        read = read_counts(folder / spec.pairs_file, 2)
        return cls(counts, spec.max_edits, {(left, right): n for (left, right), n in read.items()})

    def may_correct(self, query: str) -> bool:
        """Whether a correction is to be looked for; takes some microseconds."""
        if len(query) > MAX_CHARS:
            return False
        words = query.split()
        return any(map(self._unknown, words)) or any(self._odd(words, i) for i in range(len(words)))

    def foreign(self, query: str) -> bool:
        """Whether most words are neither known nor near to known ones: nothing to write of.

        A single unknown word may be a name, so it takes two.
        """
        words = [w for w in query.split() if w.isalpha() and len(w) >= _SHORTEST]
        strange = [w for w in words if not self._context.knows(w)]
        if len(strange) < 2 or 2 * len(strange) <= len(words):
            return False
        left = [w for w in strange if self._best(w, None, None, 1.0) is None]
        return len(left) > len(words) / 2 or (
            len(strange) == len(words) and len(left) >= len(words) / 2
        )

    def __call__(self, query: str) -> str | None:
        """The query as it is likely meant; ``None`` if nothing is known to be wrong with it.

        It takes some milliseconds for each word that is looked at.
        """
        if not self.may_correct(query):
            return None
        words = query.split()
        unknown = [self._unknown(word) for word in words]
        # Where no word is known it may be another language: only small slips are believed.
        alone = len(words) > 1 and all(unknown)
        found: list[str] = []
        for i, word in enumerate(words):
            left = found[-1].rpartition(" ")[2] if found else None
            right = words[i + 1] if i + 1 < len(words) else None
            best = None
            if unknown[i]:
                best = self._best(word, left, right, 1.0 if alone else self._max_edits)
            elif self._odd(words, i):
                best = self._better(word, left, right)
            found.append(best or word)
        text = " ".join(found)
        return None if text == " ".join(words) else text

    def _best(self, word: str, left: str | None, right: str | None, most: float) -> str | None:
        """What an unknown word likely is; ``None`` if it is likelier what was meant, as a name."""
        best, score = None, self._context.fit(word, left, right)
        if self._context.attested(word):
            score += _ATTESTED
        for other, _ in self._index.near(word, self._max_edits if len(word) > 4 else 1):
            edits = weighted_edits(word, other)
            if edits <= most:
                fit = self._context.fit(other, left, right) - _EDIT * edits
                if fit > score:
                    best, score = other, fit
        for parts in self._splits(word):
            fit = sum(
                self._context.fit(part, before, behind)
                for part, before, behind in zip(parts, (left, parts[0]), (None, right), strict=True)
            )
            if fit - _SPLIT > score:
                best, score = " ".join(parts), fit - _SPLIT
        return best

    def _better(self, word: str, left: str | None, right: str | None) -> str | None:
        """A word near to a known one that its neighbours make far likelier."""
        least = self._context.fit(word, left, right) + _REAL_WORD
        best = None
        for other, _ in within(word, self._context.beside(left, right), 1):
            fit = self._context.fit(other, left, right) - _EDIT * weighted_edits(word, other)
            if fit > least and not _inflected(word, other):
                best, least = other, fit
        return best

    def _splits(self, word: str) -> Iterator[tuple[str, str]]:
        for at in range(_SHORTEST_PART, len(word) - _SHORTEST_PART + 1):
            if self._context.seen(word[:at], word[at:]):
                yield word[:at], word[at:]

    def _odd(self, words: list[str], i: int) -> bool:
        """Whether a known word follows, and is followed by, none that it is seen with."""
        word = words[i]
        if not self._in_context or len(words) == 1 or len(word) <= _SHORTEST:
            return False
        if not word.isalpha() or not self._context.knows(word):
            return False
        if i and self._context.seen(words[i - 1], word):
            return False
        return not (i + 1 < len(words) and self._context.seen(word, words[i + 1]))

    def _unknown(self, word: str) -> bool:
        return len(word) >= _SHORTEST and self._is_word(word) and not self._context.knows(word)

    def _is_word(self, word: str) -> bool:
        return word.isalpha() and self._letters.issuperset(word)


def within(word: str, others: Collection[str], edits: int) -> Iterator[tuple[str, int]]:
    """Those of ``others`` that are one to ``edits`` edits away, with their edits."""
    near = process.extract(word, others, scorer=OSA.distance, score_cutoff=edits, limit=None)
    return ((other, int(distance)) for other, distance, _ in near if distance)


def _inflected(one: str, other: str) -> bool:
    """Whether two words differ in an ending alone: either may be meant."""
    short, long = sorted((one, other), key=len)
    return long.startswith(short[:-1]) and len(long) - len(short) <= 1 and len(short) > 4


@lru_cache(maxsize=4096)
def weighted_edits(typed: str, meant: str) -> float:
    """Edits from ``meant`` to ``typed``, the common slips counting less than one.

    Doubled letters, vowels, letters of one sound and neighbours swapped are what people mistake
    (Mitton 1996); the first letter is mostly right.
    """
    rows, columns = len(typed) + 1, len(meant) + 1
    cost = [[0.0] * columns for _ in range(rows)]
    for i in range(1, rows):
        cost[i][0] = cost[i - 1][0] + _lone(typed, i - 1)
    for j in range(1, columns):
        cost[0][j] = cost[0][j - 1] + _lone(meant, j - 1)
    for i in range(1, rows):
        for j in range(1, columns):
            one, other = typed[i - 1], meant[j - 1]
            best = min(
                cost[i - 1][j] + _lone(typed, i - 1),
                cost[i][j - 1] + _lone(meant, j - 1),
                cost[i - 1][j - 1] + _swap(one, other),
            )
            if i > 1 and j > 1 and one == meant[j - 2] and typed[i - 2] == other != one:
                best = min(best, cost[i - 2][j - 2] + 0.7)
            cost[i][j] = best
    first = 0.7 if typed[0] != meant[0] else 0.0
    return cost[-1][-1] + first


def _lone(word: str, i: int) -> float:
    """Cost of a letter that one of two words has too many."""
    if i and word[i - 1] == word[i]:
        return 0.5
    return 0.8 if word[i] in _VOWELS or word[i] in "hst" else 1.0


def _swap(one: str, other: str) -> float:
    if one == other:
        return 0.0
    if one in _VOWELS and other in _VOWELS:
        return 0.6
    return 0.7 if frozenset((one, other)) in _SOUND_ALIKE else 1.0


def write_words(counts: Mapping[str, int], path: Path) -> None:
    """Write the words that :meth:`Corrector.of` reads: a word and its count in each line."""
    lines = (f"{word} {count}\n" for word, count in sorted(counts.items()))
    path.write_text("".join(lines), encoding="utf-8")


def write_pairs(counts: Mapping[tuple[str, str], int], path: Path) -> None:
    """Write the pairs that :meth:`Corrector.of` reads: two words and their count in each line."""
    lines = (f"{left} {right} {count}\n" for (left, right), count in sorted(counts.items()))
    path.write_text("".join(lines), encoding="utf-8")


def read_counts(path: Path, length: int) -> dict[tuple[str, ...], int]:
    """Lines of ``length`` words and a count."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InvalidVersion(f"{path}: holds more than 1 MiB of words; leave out the rare ones")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InvalidVersion(f"{path}: {error}") from error
    counts = {}
    for number, line in enumerate(lines, start=1):
        *words, count = line.split() or [""]
        if len(words) != length or not _COUNT.fullmatch(count):
            what = "a word" if length == 1 else f"{length} words"
            raise InvalidVersion(f"{path}: line {number} is not {what} and how often they come")
        counts[tuple(words)] = int(count)
    return counts
