"""The normal form: of every character there is, and of text made of the troublesome ones."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.text import normalise
from service.overrides.entries import fold
from tests.fuzz.profile import LONG, fuzzed
from tests.fuzz.strategies import texts, trouble

_GROWTH = 18
"""The most characters that NFKC makes of one (U+FDFA)."""


def _require_normal(text: str, result: str, *, fold_case: bool) -> None:
    assert normalise(result, fold_case=fold_case) == result
    assert len(result) <= _GROWTH * len(text)
    assert result == " ".join(result.split(" "))
    assert not [c for c in result if c != " " and unicodedata.category(c)[0] in "CZ"]
    result.encode()


def _characters() -> Iterator[str]:
    # All of them take a minute; the rest are ideographs, and planes where hardly anything is.
    for block in (range(0x3400), range(0xA000, 0xAC00), range(0xD7B0, 0x11000)):
        yield from map(chr, block)
    yield from map(chr, range(0x11000, sys.maxunicode + 1, 1 if LONG else 61))
    if LONG:
        yield from map(chr, [*range(0x3400, 0xA000), *range(0xAC00, 0xD7B0)])


@pytest.mark.timeout(900)
@pytest.mark.parametrize("around", ["{}", "1{}2", "s{}\u0301"])
def test_every_character(around: str) -> None:
    for char in _characters():
        text = around.replace("{}", char)
        for fold_case in (False, True):
            _require_normal(text, normalise(text, fold_case=fold_case), fold_case=fold_case)


@fuzzed
@given(trouble | texts, st.booleans())
def test_characters_that_meet(text: str, fold_case: bool) -> None:
    _require_normal(text, normalise(text, fold_case=fold_case), fold_case=fold_case)


@fuzzed
@given(trouble | texts)
def test_folding_later_is_folding_at_once(text: str) -> None:
    """Versions with and without case share overrides: both must lead to the same folded form."""
    kept = normalise(text, fold_case=False)
    assert normalise(kept, fold_case=True) == normalise(text, fold_case=True)
    assert fold(kept) == normalise(text, fold_case=True)


@fuzzed
@given(texts, texts)
def test_white_space_between_texts_never_joins_them(left: str, right: str) -> None:
    apart = f"{left} \t\n {right}"
    parts = [normalise(one, fold_case=False) for one in (left, right)]
    assert normalise(apart, fold_case=False).split() == " ".join(parts).split()
