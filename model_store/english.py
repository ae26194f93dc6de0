"""How common words are in English: what a catalogue lacks is not misspelled for that reason."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import wordfreq

COMMON = 1e-6
"""Once in a million words: those that are rarer may be names or slips."""


@cache
def frequencies() -> Mapping[str, float]:
    """Words of letters with their share in English text, some 300,000, the rarest once in 1e8.

    Out of the package ``wordfreq`` (data CC BY-SA 4.0), which counts web text, subtitles, news and
    books, so that names and brands are among them, and common slips too. Takes about 0.2 s and
    40 MB, once in a process.
    """
    every = wordfreq.get_frequency_dict("en", wordlist="large")
    return {word: share for word, share in every.items() if word.isalpha()}


def is_common(word: str) -> bool:
    """Whether an English text of a million words holds ``word``, in lower case, once or more."""
    return frequencies().get(word, 0.0) >= COMMON
