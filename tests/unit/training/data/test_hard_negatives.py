"""Wrong rewrites by rule."""

from __future__ import annotations

import random

import pytest

from training.data.curated_pairs import CuratedQuery, Rewrite
from training.data.hard_negatives import (
    HardNegatives,
    NearWords,
    brand_rivals,
    negated,
    same_negation,
)

WORDS = {"milk": 90, "mill": 40, "silk": 30, "milks": 9, "couch": 50, "touch": 70, "hose": 80,
         "home": 99, "garden": 60, "warden": 5, "gray": 7, "grey": 8}  # fmt: skip
RIVALS = {"dewalt": ["makita"], "black decker": ["bosch"]}


def maker() -> HardNegatives:
    return HardNegatives(NearWords(WORDS, {("gray", "grey")}), RIVALS)


def all_of(query: str, right: tuple[str, ...] = ()) -> dict[str, str]:
    """Text -> kind of everything that the rules make in many draws."""
    found: dict[str, str] = {}
    for seed in range(40):
        found |= {one.text: one.kind for one in maker().of(query, 9, random.Random(seed), right)}
    return found


def test_near_words_are_other_words() -> None:
    near = NearWords(WORDS, {("gray", "grey")})
    assert near.near("milk") == ["mill", "silk"]
    assert near.near("gray") == []
    assert near.near("hoze") == ["home", "hose"]
    assert "milk" in near
    assert "hoze" not in near


@pytest.mark.parametrize(
    ("query", "wrong", "kind"),
    [
        ("couch", "touch", "confusable"),
        ("3 inch pipe", "4 inch pipe", "number"),
        ("3 inch pipe", "3 cm pipe", "number"),
        ("shirt xl", "shirt large", "number"),
        ("boys raincoat", "girls raincoat", "audience"),
        ("dewalt drill", "makita drill", "brand"),
        ("dewalt drill", "drill", "brand"),
        ("black decker drill", "bosch drill", "brand"),
        ("faucet without sprayer", "faucet with sprayer", "negation"),
        ("faucet without sprayer", "faucet", "negation"),
        ("cereal with sugar", "cereal without sugar", "negation"),
        ("sugar free candy", "sugar candy", "negation"),
        ("sugar free candy", "candy", "negation"),
        ("unscented candles", "scented candles", "negation"),
    ],
)
def test_each_rule_makes_its_kind(query: str, wrong: str, kind: str) -> None:
    assert all_of(query)[wrong] == kind


def test_a_code_changes_in_one_place() -> None:
    changed = [text for text, kind in all_of("dcd771c2").items() if kind == "number"]
    assert changed
    assert "dcd771c2" not in changed
    assert all(abs(len(text) - len("dcd771c2")) <= 1 for text in changed)


def test_what_is_right_is_not_made_wrong() -> None:
    assert "touch" not in all_of("couch", right=("touch",))


def test_no_number_is_taken_for_a_negation() -> None:
    assert "negation" not in all_of("olaplex no 3").values()


def test_the_count_is_kept_and_texts_are_distinct() -> None:
    made = maker().of("boys garden hose 3 inch", 4, random.Random(3))
    assert len({one.text for one in made}) == 4


def test_rules_about_the_query_come_before_those_for_any() -> None:
    (one,) = maker().of("faucet without sprayer", 1, random.Random(1))
    assert one.kind == "negation"


def test_brands_are_learnt_from_wrong_rewrites() -> None:
    lego = CuratedQuery("lego castle", "toys", (), (Rewrite("playmobil castle", "brand"),))
    far = CuratedQuery("bosch drill", "tools", (), (Rewrite("a saw of another make", "brand"),))
    assert brand_rivals([lego, far]) == {"lego": ["playmobil"], "playmobil": ["lego"]}


@pytest.mark.parametrize(
    ("query", "same"),
    [
        ("faucet without sprayer", "faucet no sprayer"),
        ("faucet no sprayer", "sprayer free faucet"),
        ("sugar free candy", "candy without sugar"),
        ("candy sugar free", "sugar free candy"),
    ],
)
def test_a_negation_can_be_said_in_another_way(query: str, same: str) -> None:
    assert same in same_negation(query)


def test_other_queries_have_no_other_way() -> None:
    assert same_negation("garden hose") == []


def test_a_negated_product_names_both() -> None:
    text, feature = negated("faucet", random.Random(1))
    assert "faucet" in text
    assert feature in text
    assert same_negation(text)
