"""Common English words: a word that a shop's catalogue lacks is not therefore misspelled."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files

_LIST = "frequency_dictionary_en_82_765.txt"


@cache
def frequencies() -> Mapping[str, int]:
    """82,765 English words in lower case and how often they come in books.

    The list is that of the package ``symspellpy`` (MIT): the words of SCOWL with counts of Google's
    Books Ngram data. Takes about 40 ms and 12 MB once in a process.
    """
    text = (files("symspellpy") / _LIST).read_text(encoding="utf-8-sig")
    rows = (line.split() for line in text.splitlines())
    return {word: int(count) for word, count in rows}
