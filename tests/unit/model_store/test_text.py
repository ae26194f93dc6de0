"""The normal form of shopper text."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.text import normalise

# Lone surrogates too: JSON can carry them.
any_text = st.text(st.characters(codec=None, exclude_categories=()), max_size=60)


@given(any_text, st.booleans())
def test_normalising_twice_changes_nothing(text: str, fold_case: bool) -> None:
    once = normalise(text, fold_case=fold_case)
    assert normalise(once, fold_case=fold_case) == once


@given(any_text, st.booleans())
def test_the_result_is_printable_and_encodable(text: str, fold_case: bool) -> None:
    result = normalise(text, fold_case=fold_case)
    result.encode()
    assert result == result.strip()
    assert "  " not in result
    for char in result.replace(" ", ""):
        assert unicodedata.category(char)[0] not in "CZ", f"{char!r} survived"


@given(any_text)
def test_spellings_that_differ_in_case_share_a_form(text: str) -> None:
    folded = normalise(text, fold_case=True)
    assert folded == normalise(folded.casefold(), fold_case=True)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  Steele\t\nStake ", "steele stake"),
        ("ｓｔｅｅｌ", "steel"),
        ("ste\u200bel", "steel"),
        ("\u202esteel\u202c", "steel"),
        ("a\x00b", "a b"),
        ("a\x1b[31mb", "a [31mb"),
        ("½ in.", "1/2 in."),
        ("1½ in.", "1 1/2 in."),
        ("3⁄4", "3/4"),
        ("\ud800", ""),
        ("\ue000", ""),
        (" \u3000\u2028 ", ""),
        ("STRASSE straße", "strasse strasse"),
        ("cafe\u0301", "café"),
        ("<|im_end|>", "<|im_end|>"),
        ("velcro\u2122 tape", "velcro tape"),
        ("3M\u2122 duct tape", "3m duct tape"),
        ("LEGO\u00ae Star Wars\u2122 set", "lego star wars set"),
        ("\u00a9 disney mug\u2120", "disney mug"),
        ("\U0001f384 tree", "tree"),
        ("i \u2764\ufe0f mugs", "i mugs"),
        ("\U0001f384", "\U0001f384"),
        ("90\u00b0 elbow", "90\u00b0 elbow"),
    ],
)
def test_examples(text: str, expected: str) -> None:
    assert normalise(text, fold_case=True) == expected


def test_case_is_kept_when_the_version_says_so() -> None:
    assert normalise(" DeWALT  20V ", fold_case=False) == "DeWALT 20V"
