"""One normal form for shopper text, shared by training, serving and cache keys."""

from __future__ import annotations

import re
import unicodedata

MAX_QUERY_CHARS = 256
"""Longest query accepted, in characters after :func:`normalise`."""


_MARKS = str.maketrans(dict.fromkeys("\u2122\u2120\u00ae\u00a9\u2117"))
"""Trade marks and the like: NFKC would write some of them as letters ("3M\u2122" as "3mtm")."""
_EMOJI = re.compile("[\u2600-\u27bf\u2b00-\u2bff\U0001f000-\U0001faff\ufe0f\u20e3]+")
_FRACTION_AFTER_DIGIT = re.compile(r"(?<=\d)(?=[\u00bc-\u00be\u2150-\u215e\u2189])")


def normalise(text: str, *, fold_case: bool) -> str:
    """Return ``text`` in the form that a model version was trained on.

    NFKC, with fractions written out (``1\u00bd`` is ``1 1/2``); format characters (zero-width,
    direction marks) and trade marks vanish, so that spellings which mean the same share a cache
    key; control, surrogate and private-use characters become spaces, and so do emoji beside words,
    because no catalogue has them; runs of white space fold to one space; ends are trimmed; with
    ``fold_case`` the case is folded.

    The function is idempotent and never fails: text that holds nothing printable gives ``""``.
    """
    if text.isascii() and text.isprintable():
        # The same, quickly: most text is of this kind.
        return " ".join((text.lower() if fold_case else text).split())
    # NFKC alone would run the whole number into the fraction: 11/2.
    text = _FRACTION_AFTER_DIGIT.sub(" ", _printable(text.translate(_MARKS)))
    text = unicodedata.normalize("NFKC", text).replace("\u2044", "/")
    if fold_case:
        # Case folding can undo NFKC's composition, so it is composed once more.
        text = unicodedata.normalize("NFKC", text.casefold())
    # NFKC may itself make white space out of compatibility characters.
    text = " ".join(_printable(text).split())
    words = " ".join(_EMOJI.sub(" ", text).split())
    return words if any(map(str.isalnum, words)) else text


def _printable(text: str) -> str:
    kept: list[str] = []
    for char in text:
        category = unicodedata.category(char)
        if category == "Cf":
            continue
        kept.append(" " if category[0] in "CZ" else char)
    return "".join(kept)
