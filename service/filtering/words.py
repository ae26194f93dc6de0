"""Folded words, to compare texts regardless of case, punctuation and plurals.

Joined or split words ("deck over", "deckover") differ, because a search engine finds other products
by them.
"""

from __future__ import annotations

import re
import unicodedata

SMALL_WORDS = frozenset(
    ("a", "an", "and", "by", "for", "from", "in", "of", "on", "the", "to", "with")
)
"""Words that say little of a product."""

_JOINERS = str.maketrans({"'": None, "\u2019": None, "\u2044": "/"})
_ASCII_BREAK = re.compile(r"[^a-z0-9./]+")
_TOKEN = re.compile(r"\d+(?:[./]\d+)*|[^\d\s./]+")


def words(text: str) -> tuple[str, ...]:
    """Folded words of ``text``: lower case, no punctuation, English plurals made singular.

    Letters and digits are split (``wd40`` is ``wd``, ``40``), so that ``2x4`` and ``2 x 4`` have
    the same words: catalogues write them either way. Points and slashes inside numbers stay:
    ``1.5`` is not ``15``.
    """
    folded = text.casefold().translate(_JOINERS)
    if folded.isascii():
        spaced = _ASCII_BREAK.sub(" ", folded)
    else:
        # Marks (Indic vowels, Arabic points) are part of their word though not alphanumeric.
        spaced = "".join(
            c if c.isalnum() or c in "./" or unicodedata.category(c)[0] == "M" else " "
            for c in folded
        )
    return tuple(_singular(token) for token in _TOKEN.findall(spaced))


def _singular(word: str) -> str:
    """A crude singular: good for telling two spellings apart, not for printing."""
    if len(word) <= 3 or not word.endswith("s") or word.endswith(("ss", "us", "is")):
        return word
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if word.endswith(("ches", "shes", "xes", "zes", "sses")):
        return word[:-2]
    return word[:-1]
