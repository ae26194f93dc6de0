"""A spelling corrector made of a catalogue's own words, as one more author of candidates.

What it proposes is tagged by the model and filtered like any other candidate: it knows which words
there are, the model knows which of them are meant.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from symspellpy import SymSpell

from model_store.errors import InvalidVersion
from model_store.manifest import SpellingSpec

MAX_CHARS = 96
"""Longest query that is looked at: time grows with the unknown words, to a tenth of a second for
the longest query that is answered at all, and nobody mistypes a whole paragraph."""
_MAX_BYTES = 2**20
"""Largest file of words, some 100,000 of them: each takes 2.6 kB of memory."""
_SHORTEST = 3
"""Letters of the shortest word that can be wrong by itself."""


class Corrector:
    """Finds the words of a catalogue that a query's unknown words are likely meant to be.

    SymSpell (symmetric deletes) finds the known word that is fewest edits away, and the most
    frequent of those; it joins and splits words too ("lawnmower", "lawn mower"). Only runs of words
    made of the known words' letters are looked at: sizes, codes, signs and other writing stay.

    Args:
        counts: known words in lower case, and how often they come.
        max_edits: most edits (Damerau-Levenshtein, neighbours swapped being one edit) of a word.
    """

    def __init__(self, counts: Mapping[str, int], max_edits: int = 2) -> None:
        self._max_edits = max_edits
        self._speller = SymSpell(max_dictionary_edit_distance=max_edits)
        for word, count in counts.items():
            self._speller.create_dictionary_entry(word, count)
        self._letters = frozenset("".join(counts))
        # SymSpell notes what it has replaced in itself.
        self._one_at_a_time = threading.Lock()

    @classmethod
    def of(cls, spec: SpellingSpec, folder: Path) -> Self:
        """The corrector of a version.

        Args:
            spec: its settings in the manifest.
            folder: the version's folder, its files checked.

        Raises:
            InvalidVersion: the words cannot be read.
        """
        path = folder / spec.words_file
        try:
            return cls(_read(path), spec.max_edits)
        except (OSError, ValueError) as error:
            raise InvalidVersion(f"{path}: {error}") from error

    def may_correct(self, query: str) -> bool:
        """Whether the query has words that are not known, and is not too long; takes no time."""
        return len(query) <= MAX_CHARS and any(self._unknown(word) for word in query.split())

    def __call__(self, query: str) -> str | None:
        """The query as it is likely meant; ``None`` if nothing is known to be wrong with it.

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
        with self._one_at_a_time:
            best = self._speller.lookup_compound(
                " ".join(run), self._max_edits, ignore_non_words=True
            )
        return best[0].term.split() if best and best[0].term else run.copy()

    def _unknown(self, word: str) -> bool:
        return len(word) >= _SHORTEST and self._is_word(word) and word not in self._speller.words

    def _is_word(self, word: str) -> bool:
        return word.isalpha() and self._letters.issuperset(word)


def write_words(counts: Mapping[str, int], path: Path) -> None:
    """Write the file that :meth:`Corrector.of` reads: a word and its count in each line."""
    lines = (f"{word} {count}\n" for word, count in sorted(counts.items()))
    path.write_text("".join(lines), encoding="utf-8")


def _read(path: Path) -> dict[str, int]:
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError("holds more than 1 MiB of words; leave out the rare ones")
    counts = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        match line.split():
            case [word, count] if count.isdecimal():
                counts[word] = int(count)
            case _:
                raise ValueError(f"line {number} is not a word and how often it comes")
    return counts
