from __future__ import annotations

import itertools
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import OSA

from training.data.noise import Slips, corrupt, join_words, misspell, rewrite_units, split_word

CLEAN = "outdoor ceiling fan with 52 in. blades"
KINDS = (misspell, join_words, split_word, rewrite_units, corrupt)


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_decides(kind: object) -> None:
    assert callable(kind)
    first = [kind(CLEAN, random.Random(seed)) for seed in range(40)]
    again = [kind(CLEAN, random.Random(seed)) for seed in range(40)]
    assert first == again
    assert len(set(first)) > 1


def test_misspelling_touches_one_longer_word_and_keeps_its_first_letter() -> None:
    changed = 0
    for seed in range(200):
        noisy = misspell("a 3/4x7 heavy bolt", random.Random(seed))
        words = noisy.split()
        assert words[:2] == ["a", "3/4x7"]
        assert (words[2] == "heavy") or (words[3] == "bolt")
        assert words[2][0] == "h"
        assert words[3][0] == "b"
        assert OSA.distance("a 3/4x7 heavy bolt", noisy) <= 1
        changed += noisy != "a 3/4x7 heavy bolt"
    assert changed > 150


def test_all_four_slips_occur() -> None:
    found = {misspell("brackets", random.Random(seed)) for seed in range(400)}
    assert "brakets" in found  # dropped
    assert "braackets" in found  # doubled
    assert "bracktes" in found  # swapped
    assert "breckets" in found  # replaced: "e" is next to "a", or sounds like it


def test_short_words_and_numbers_are_never_misspelt() -> None:
    for seed in range(50):
        assert misspell("2x4 oak 3/4", random.Random(seed)) == "2x4 oak 3/4"


def test_joining_takes_one_space_between_words() -> None:
    found = {join_words("lawn mower 20 in", random.Random(seed)) for seed in range(20)}
    assert found == {"lawnmower 20 in"}


def test_splitting_takes_long_and_hyphenated_words_apart() -> None:
    found = {split_word("doorbell", random.Random(seed)) for seed in range(40)}
    assert found == {"doo rbell", "door bell", "doorb ell"}
    found = {split_word("t-post", random.Random(seed)) for seed in range(40)}
    assert found == {"t-post", "tpost", "t post"}
    assert split_word("oak door", random.Random(0)) == "oak door"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("3/4 in. pipe", {'3/4" pipe', "3/4in pipe", "3/4 inch pipe", "3/4inch pipe",
                          "3/4'' pipe", "3/4 in pipe"}),
        ("10 ft. hose", {"10' hose", "10ft hose", "10 foot hose", "10foot hose", "10 feet hose",
                         "10 ft hose"}),
        ("5 gal. can", {"5 gallon can", "5gal can", "5 gal can", "5gallon can"}),
        ("2 x 4 wood", {"2x4 wood", "2X4 wood", "2 by 4 wood", "2*4 wood"}),
        ("18-volt drill", {"18v drill", "18 v drill", "18volt drill", "18 volt drill"}),
        ("wood in box", {"wood in box"}),
    ],
)  # fmt: skip
def test_units_are_written_as_shoppers_do(text: str, expected: set[str]) -> None:
    assert {rewrite_units(text, random.Random(seed)) for seed in range(100)} == expected


@given(st.text(max_size=80), st.integers())
def test_any_text_can_be_corrupted(text: str, seed: int) -> None:
    for kind in KINDS:
        assert isinstance(kind(text, random.Random(seed)), str)


@given(st.lists(st.from_regex(re.compile(r"[a-z]{1,12}"), fullmatch=True), max_size=6))
def test_noise_never_loses_a_whole_word(words: list[str]) -> None:
    text = " ".join(words)
    for seed in range(3):
        letters = len(corrupt(text, random.Random(seed)).replace(" ", ""))
        # Two rounds of at most two dropped letters.
        assert letters >= len(text.replace(" ", "")) - 4


class TestSlips:
    def test_what_was_typed_once_is_typed_again_between_the_same_letters(self) -> None:
        slips = Slips([("hamer drill", "hammer drill")])
        assert len(slips) == 1
        found = {slips.apply("summer", random.Random(i)) for i in range(20)}
        assert found == {"sumer"}
        assert slips.apply("hammock", random.Random(0)) is None, "another neighbour"

    @pytest.mark.parametrize(
        ("typed", "meant", "word", "noisy"),
        [
            ("cieling", "ceiling", "receive", "recieve"),
            ("vynal", "vinyl", "vinyl", "vynal"),
            ("gril", "grill", "drill", "dril"),
            ("grilll", "grill", "drill", "drilll"),
            ("oser", "loser", "loser", "oser"),
        ],
    )
    def test_swaps_drops_and_doublings(self, typed: str, meant: str, word: str, noisy: str) -> None:
        found = Slips([(typed, meant)]).apply(word, random.Random(1))
        assert found in (noisy, None)
        assert Slips([(typed, meant)]).apply(meant, random.Random(1)) == typed

    def test_frequent_slips_come_more_often(self) -> None:
        slips = Slips([("hamer", "hammer")] * 9 + [("hammmer", "hammer")])
        found = [slips.apply("hammer", random.Random(i)) for i in range(300)]
        assert found.count("hamer") > 2 * found.count("hammmer") > 0

    @pytest.mark.parametrize(
        ("typed", "meant"),
        [("lawnmower", "lawn mower"), ("1/2 pipe", "3/4 pipe"), ("x", "refrigerator"), ("a", "a")],
    )
    def test_other_differences_are_no_slips(self, typed: str, meant: str) -> None:
        assert len(Slips([(typed, meant)])) == 0

    def test_noise_uses_them(self) -> None:
        slips = Slips([("steele", "steel")])
        found = {corrupt("steel", random.Random(i), slips) for i in range(60)}
        assert "steele" in found


@settings(max_examples=60)
@given(st.lists(st.text("abcdefgh", min_size=3, max_size=8), min_size=2, max_size=8))
def test_a_slip_puts_back_what_it_was_learnt_from(words: list[str]) -> None:
    pairs = list(itertools.pairwise(words))
    for typed, meant in pairs:
        slips = Slips([(typed, meant)])
        if len(slips):
            made = {slips.apply(meant, random.Random(i)) for i in range(30)}
            assert typed in made
