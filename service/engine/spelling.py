"""A spelling corrector made of a catalogue's own words, as one more source of candidates.

The model tags its proposals, and they are filtered like any other candidate: the corrector knows
which words exist, the model knows which of them are meant.
"""

from __future__ import annotations

import math
import re
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from symspellpy import SymSpell, Verbosity

from model_store.errors import InvalidVersion
from model_store.manifest import SpellingSpec

MAX_CHARS = 96
"""Longest query that is corrected: time grows with the unknown words, to a tenth of a second for
the longest query that the service accepts."""
_MAX_BYTES = 2**20
"""Largest file of words, some 100,000: each word takes 2.6 kB of memory."""
_SHORTEST = 3
"""Letters of the shortest word that is corrected."""
_NEAREST = 20
"""Known words that are considered for an unknown one."""
_EDIT = 8.0
"""Log-likelihood that each edit must gain. Chosen on the development fold among 2 to 8: recall
differs by 0.0003 at most, and no other value reproduces more of the shoppers' own corrections."""
_COUNT = re.compile(r"[1-9][0-9]{0,14}")
_SEEN = 0.9
"""Weight of observed pairs against single words (Jelinek and Mercer 1980)."""


class Context:
    """How likely words are between their neighbours, by the pairs of words of a catalogue.

    Args:
        counts: known words with their frequencies.
        pairs: pairs of adjacent known words with their frequencies.
    """

    def __init__(self, counts: Mapping[str, int], pairs: Mapping[tuple[str, str], int]) -> None:
        self._counts, self._pairs = counts, pairs
        self._total = sum(counts.values())
        self._begun: Counter[str] = Counter()
        for (left, _), count in pairs.items():
            self._begun[left] += count

    def fit(self, word: str, left: str | None, right: str | None) -> float:
        """Natural logarithm of ``P(word | left) P(right | word) / P(right)``.

        Args:
            word: a known word.
            left: the word before it, if there is one.
            right: the word after it.
        """
        found = math.log(self._after(left, word))
        if right is not None and right in self._counts:
            found += math.log(self._after(word, right) * self._total / self._counts[right])
        return found

    def _after(self, left: str | None, word: str) -> float:
        alone = self._counts[word] / self._total
        if left is None or left not in self._begun:
            return alone
        seen = self._pairs.get((left, word), 0) / self._begun[left]
        return _SEEN * seen + (1 - _SEEN) * alone


class Corrector:
    """Replaces a query's unknown words by the words of a catalogue that are likely meant.

    SymSpell (symmetric deletes) finds the known word with the fewest edits, the most frequent of
    several; it also joins and splits words ("lawnmower", "lawn mower"). Only runs of words made of
    the known words' letters are corrected: sizes, codes, signs and other scripts stay. With pairs
    of words, neighbours then choose among near words: "hoze" is nearest to the common "home", and
    after "garden" becomes "hose".

    Args:
        counts: known words in lower case with their frequencies.
        max_edits: most edits (Damerau-Levenshtein, neighbours swapped being one edit) of a word.
        pairs: pairs of adjacent known words with their frequencies.
    """

    def __init__(
        self,
        counts: Mapping[str, int],
        max_edits: int = 2,
        pairs: Mapping[tuple[str, str], int] | None = None,
    ) -> None:
        self._context = None if pairs is None else Context(counts, pairs)
        self._max_edits = max_edits
        self._speller = SymSpell(max_dictionary_edit_distance=max_edits)
        for word, count in counts.items():
            self._speller.create_dictionary_entry(word, count)
        self._letters = frozenset("".join(counts))
        # SymSpell keeps state during a look-up.
        self._lock = threading.Lock()

    @classmethod
    def of(cls, spec: SpellingSpec, folder: Path) -> Self:
        """The corrector of a version.

        Args:
            spec: its settings in the manifest.
            folder: the version's folder, its files checked.

        Raises:
            InvalidVersion: the words, or the pairs, cannot be read.
        """
        counts = {words[0]: count for words, count in _read(folder / spec.words_file, 1).items()}
        if spec.pairs_file is None:
            return cls(counts, spec.max_edits)
        read = _read(folder / spec.pairs_file, 2)
        return cls(counts, spec.max_edits, {(left, right): n for (left, right), n in read.items()})

    def may_correct(self, query: str) -> bool:
        """Whether the query has unknown words and is not too long; quick."""
        return len(query) <= MAX_CHARS and any(self._unknown(word) for word in query.split())

    def __call__(self, query: str) -> str | None:
        """The likely correction of a query; ``None`` if there is nothing to correct.

        It may take some milliseconds for each unknown word.
        """
        if not self.may_correct(query):
            return None
        found: list[str] = []
        run: list[str] = []
        for word in (*query.split(), ""):
            if self._is_word(word):
                run.append(word)
                continue
            found += self._corrected(run)
            run.clear()
            if word:
                found.append(word)
        text = " ".join(found)
        return None if text == " ".join(query.split()) else text

    def _corrected(self, run: list[str]) -> list[str]:
        if not any(self._unknown(word) for word in run):
            return run.copy()
        with self._lock:
            best = self._speller.lookup_compound(
                " ".join(run), self._max_edits, ignore_non_words=True
            )
        if not best or not best[0].term:
            return run.copy()
        words = best[0].term.split()
        return words if self._context is None else self._in_context(run, words, self._context)

    def _in_context(self, run: list[str], words: list[str], context: Context) -> list[str]:
        """``words``; each that replaces one of ``run`` becomes the near word that fits best."""
        if len(words) != len(run):
            return words
        for i, typed in enumerate(run):
            if words[i] == typed or not self._unknown(typed):
                continue
            with self._lock:
                near = self._speller.lookup(typed, Verbosity.ALL, self._max_edits)
            near.sort(key=lambda one: (one.distance, -one.count, one.term))
            edits = {one.term: one.distance for one in near[:_NEAREST]}
            if words[i] not in edits:
                continue  # Words were joined or split here.
            left = words[i - 1] if i else None
            right = words[i + 1] if i + 1 < len(words) else None
            words[i] = max(edits, key=lambda w: context.fit(w, left, right) - _EDIT * edits[w])
        return words

    def _unknown(self, word: str) -> bool:
        return len(word) >= _SHORTEST and self._is_word(word) and word not in self._speller.words

    def _is_word(self, word: str) -> bool:
        return word.isalpha() and self._letters.issuperset(word)


def write_words(counts: Mapping[str, int], path: Path) -> None:
    """Write the words for :meth:`Corrector.of`: a word and its count in each line."""
    lines = (f"{word} {count}\n" for word, count in sorted(counts.items()))
    path.write_text("".join(lines), encoding="utf-8")


def write_pairs(counts: Mapping[tuple[str, str], int], path: Path) -> None:
    """Write the pairs for :meth:`Corrector.of`: two words and their count in each line."""
    lines = (f"{left} {right} {count}\n" for (left, right), count in sorted(counts.items()))
    path.write_text("".join(lines), encoding="utf-8")


def _read(path: Path, length: int) -> dict[tuple[str, ...], int]:
    """Lines of ``length`` words and a count."""
    try:
        if path.stat().st_size > _MAX_BYTES:
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
