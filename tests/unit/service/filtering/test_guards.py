from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.filtering.guards import (
    Brands,
    adds_numbers,
    adds_sizes,
    keeps_codes,
    keeps_numbers,
    keeps_sizes,
    quantities,
)

KEPT = [
    ("3/4 in pipe", "3/4 inch pipe"),
    ("3/4 in pipe", '0.75" pipe'),
    ("3/4 pipe", ".75 inch pipe"),
    ("1/2inch valve", "1/2 in valve"),
    ("2x4 lumber", "2 x 4 lumber"),
    ("2 by 4", "2x4"),
    ("2x4x8lumber", "2 x 4 x 8 lumber"),
    ("2 ft x 4 ft panel", "2 x 4 ft panel"),
    ("12 volt battery", "12v battery"),
    ("12v", "12 volts"),
    ("60w bulb", "60 watt bulb"),
    ("5galon bucket", "5 gallon bucket"),
    ("2 1/2 in screw", "2.5 inch screw"),
    ("2-1/2 in screw", '2 1/2" screw'),
    ("12 in ruler", "1 ft ruler"),
    ("6' ladder", "6 ft ladder"),
    ("10 sq. ft. rug", "10 square feet rug"),
    ("1,000 lumens lamp", "1000 lm lamp"),
    ("3in1 tool", "3 in 1 tool"),
    ("3 piece sofa", "three piece sofa"),
    ("5th wheel", "fifth wheel"),
    ("12 pack aa", "pack of 12 aa"),
    ("wd40", "wd-40"),
    ("1/0 wire", "1/0 wire"),
    ("75 tv", "75 inch tv"),
    ("90's lamp", "90s lamp"),
    ("steel stake", "steel stake 24 in"),
    ("\u0661\u0662 lamp", "12 lamp"),
    ("2\u201d pvc pipe", '2" pvc pipe'),
    ("2\u201d pvc pipe", "2 inch pvc pipe"),
    ("5\u2019 ladder", "5 ft ladder"),
    ("1/2\u201d copper pipe", "1/2 in copper pipe"),
    ("5 m hose", "5 meter hose"),
    ("5 l bucket", "5 liter bucket"),
    ("20 a breaker", "20 amp breaker"),
    ("500 mcg folic acid", "0.5 mg folic acid"),
    ("10 km radio", "10 kilometer radio"),
    ("20 a day vitamins", "vitamins 20 per day"),
]
LOST = [
    ("3/4 in pipe", "1/2 in pipe"),
    ("3/4 in pipe", "pipe"),
    ("3/4 in pipe", "34 in pipe"),
    ("2x4 lumber", "2x6 lumber"),
    ("2x2 tile", "2 tile"),
    ("12v battery", "12 battery"),
    ("12v battery", "12 w battery"),
    ("12 in ruler", "12 ft ruler"),
    ("60w bulb", "75 watt bulb"),
    ("wd40", "wd 41"),
    ("1.5 in nail", "15 in nail"),
    ("12 pack aa", "aa pack"),
    ("2 1/2 in screw", "2 in screw"),
    ("2\u201d pvc pipe", "2 ft pvc pipe"),
    ("5\u2019 ladder", "5 in ladder"),
    ("5 m hose", "5 mm hose"),
    ("5 l bucket", "5 ml bucket"),
    ("20 a breaker", "20 v breaker"),
    ("500 mcg folic acid", "500 mg folic acid"),
    ("10 km radio", "10 m radio"),
]


ADDED = [
    ("closet light fixture", "light fixture 36x48"),
    ("4x4 treated post", "4x4x10 treated post"),
    ("6x6 vent grille", "6x6 x 1/2 vent grille"),
    ("lawnmower", "3000lb lawn mower"),
    ("black gas range", "4 burner gas range"),
    ("three piece sofa", "3 piece 2 seat sofa"),
    ("12v battery", "12v battery 12 ah"),
]
SAME = [
    *(pair for pair in KEPT if pair != ("steel stake", "steel stake 24 in")),
    ("three piece sofa", "3 piece sofa"),
    ("dozen roses", "12 roses"),
    ("2x4", "2 in. x 4 in."),
    ("8 bulb", "8 in. x 8 bulb"),
    ("toilet", "one piece toilet"),
    ("1 half pipe", "1 pipe, half"),
]


@pytest.mark.parametrize(("query", "rewrite"), ADDED)
def test_a_number_that_nobody_asked_for_is_noticed(query: str, rewrite: str) -> None:
    assert adds_numbers(query, rewrite)


@pytest.mark.parametrize(("query", "rewrite"), SAME)
def test_numbers_that_were_asked_for_are_none_added(query: str, rewrite: str) -> None:
    assert not adds_numbers(query, rewrite)


@pytest.mark.parametrize(("query", "rewrite"), KEPT)
def test_the_same_quantity_in_other_words_is_kept(query: str, rewrite: str) -> None:
    assert keeps_numbers(query, rewrite)


@pytest.mark.parametrize(("query", "rewrite"), LOST)
def test_a_lost_or_changed_quantity_is_noticed(query: str, rewrite: str) -> None:
    assert not keeps_numbers(query, rewrite)


def test_a_row_of_numbers_takes_the_unit_at_its_end() -> None:
    found = quantities("2 x 4 ft board 3")
    assert [(int(q.value), q.dimension) for q in found] == [(2, "length"), (4, "length"), (3, None)]


def test_values_are_exact() -> None:
    assert [q.value for q in quantities("1 1/3, .1 and 7/0")] == [
        Fraction(4, 3), Fraction(1, 10), 7, 0,
    ]  # fmt: skip


@given(st.text(max_size=256))
def test_any_text_keeps_its_own_numbers_and_sizes(text: str) -> None:
    assert keeps_numbers(text, text)
    assert keeps_sizes(text, text)
    assert not adds_numbers(text, text)


@given(st.text(alphabet="0123456789/.,-x \"'inft", max_size=64))
def test_any_jumble_of_numbers_is_read(text: str) -> None:
    assert all(q.dimension is not None or q.size == q.value for q in quantities(text))
    assert keeps_numbers(text, text)
    assert not adds_numbers(text, text)


@given(
    st.integers(1, 9999),
    st.sampled_from([("in", "inches"), ("v", "volt"), ("gal", "gallon"), ("lb", "pounds")]),
)
def test_a_unit_may_be_spelled_and_spaced_in_any_way(number: int, unit: tuple[str, str]) -> None:
    short, long = unit
    forms = [f"{number}{short} x", f"{number} {long} x", f"{number}-{long} x", f"x {number}{long}"]
    assert all(keeps_numbers(a, b) for a in forms for b in forms)
    assert not keeps_numbers(forms[0], f"{number + 1}{short} x")
    assert not keeps_numbers(forms[0], "x")


@pytest.mark.parametrize(
    ("query", "rewrite", "kept"),
    [
        ("xl shirt", "extra large shirt", True),
        ("x-large shirt", "xl shirt", True),
        ("xl shirt", "shirt", False),
        ("queen mattress", "king mattress", False),
        ("gloves size m", "size m glove", True),
        ("gloves size m", "size l glove", False),
        ("large pot", "big pot", True),
        ("aaa batteries", "aa batteries", False),
        ("aaa batteries", "batteries", False),
        ("batteries aa", "aa batteries", True),
        ("double a batteries", "aa batteries", True),
        ("d cell batteries", "c cell batteries", False),
        ("medium work gloves", "large work gloves", False),
        ("medium work gloves", "work gloves medium", True),
        ("large dog bed", "big dog bed", True),
        ("large dog bed", "dog bed", True),
    ],
)
def test_size_words_are_kept(query: str, rewrite: str, kept: bool) -> None:
    assert keeps_sizes(query, rewrite) is kept


def test_brands_are_found_however_they_are_written() -> None:
    brands = Brands(["Black & Decker", "dewalt", "ge"])
    for text in ("black and decker drill", "blackdecker drill", "BLACK+DECKER drill"):
        assert brands.found(text) == {"blackdecker"}
    assert brands.found("de walt saw") == {"dewalt"}
    assert brands.found("large page") == set()
    assert brands.keeps("black+decker drill", "black & decker cordless drill")
    assert not brands.keeps("dewalt drill", "makita drill")
    assert brands.keeps("drill", "dewalt drill")
    assert Brands([]).keeps("dewalt drill", "drill")


@pytest.mark.parametrize(
    ("query", "rewrite", "kept"),
    [
        ("DCD771C2", "dcd771c2", True),
        ("DCD771C2", "dcd 771c2 drill", True),
        ("DCD771C2", "dcd771d2", False),
        ("WRX735SDHZ", "wrx735sdh", False),
        ("wd-40", "wd 40 spray", True),
        ("wd-40", "wd 30", False),
        ("wd-40", "w 40", False),
        ("light bulb e26", "e26 light bulb", True),
        ("light bulb e26", "light bulb e12", False),
        ("light bulb e26", "light bulb 26", False),
        ("ps5", "playstation 5", True),
        ("2x4 lumber", "2 by 4 lumber", True),
        ("5galon bucket", "5 gallon bucket", True),
        ("12v battery", "12 volt battery", True),
        ("3in1 oil", "3 in 1 oil", True),
    ],
)
def test_codes_are_kept_to_the_letter(query: str, rewrite: str, kept: bool) -> None:
    assert keeps_codes(query.casefold(), rewrite) is kept


def test_a_size_that_nobody_asked_for_is_found() -> None:
    assert adds_sizes("duracell batteries", "duracell aa batteries")
    assert not adds_sizes("queen sheets", "queen bed sheets")


def test_a_brand_is_guarded_by_itself_and_in_its_longer_forms() -> None:
    brands = Brands(["behr premium", "hampton bay", "best choice"])
    assert not brands.keeps("behr paint", "paint in white")
    assert brands.keeps("behr paint", "behr premium paint")
    assert not brands.keeps("hampton bay fan", "hampton fan")
    assert brands.keeps("best fan", "good fan"), "an English word is no brand by itself"
