"""Text and JSON that are likelier than chance to break something."""

from __future__ import annotations

import unicodedata
from typing import Any

from hypothesis import strategies as st

from tests.contract import corpus

_TROUBLE = [
    char
    for char in map(chr, [*range(0x3400), *range(0xA000, 0xAC00), *range(0xF900, 0x11000)])
    if unicodedata.category(char) not in ("Cn", "Co")
    and (
        unicodedata.category(char)[0] in "CMZ"
        or unicodedata.normalize("NFKC", char) != char
        or char.casefold() != char
        or unicodedata.normalize("NFKD", char) != char
    )
]
"""Characters that normalising or folding changes, marks, controls, separators, surrogates."""

trouble = st.text(st.sampled_from(_TROUBLE), max_size=12)
anything = st.text(st.characters(codec=None, exclude_categories=()), max_size=60)
hostile = st.sampled_from([text for text in corpus.STRINGS.values() if len(text) < 5000])
shopping = st.sampled_from(
    ["steele stake", "2x4 lumber 8 ft", "1½ in. pvc elbow", "dewalt 20v drill", "size m gloves",
     "3/4 in x 10 ft pipe", "black & decker", "xl t-shirt", "12 pack aa", "queen sheets 100%"]
)  # fmt: skip
digits = st.text("0123456789½¼/.,x-'\" ftinvm١٢²", max_size=24)

texts = st.lists(anything | trouble | hostile | shopping | digits, max_size=4).map("".join)
"""Any text, lone surrogates too."""
encodable = texts.map(lambda text: text.encode("utf-8", "ignore").decode())
"""Text that JSON and engines can hold."""

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | encodable,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
