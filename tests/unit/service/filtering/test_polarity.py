"""A rewrite excludes what its query excludes, and nothing else."""

from __future__ import annotations

import pytest

from service.filtering.polarity import keeps_polarity

TURNED = [
    ("faucet without sprayer", "faucet with sprayer"),
    ("faucet without sprayer", "faucet sprayer"),
    ("gas grill without side burner", "gas grill with side burner"),
    ("cordless drill without battery", "cordless drill with battery"),
    ("cordless drill without battery", "cordless drill battery"),
    ("not smart thermostat", "smart thermostat"),
    ("non electric heater", "electric heater"),
    ("nonstick pan", "stick pan"),
    ("unfinished cabinet", "finished cabinet"),
    ("unscented candles", "scented candles"),
    ("dog food no chicken", "chicken dog food"),
    ("ceiling fan without light", "ceiling fan with light"),
    ("ceiling fan w/o light", "ceiling fan with light"),
    ("ceiling fan with out light", "ceiling fan light kit"),
    ("sugar free candy", "candy"),
    ("sugar-free candy", "sugar candy"),
    ("sulfate free shampoo", "sulfate shampoo"),
    ("peanut butter no sugar", "peanut butter with sugar"),
    ("wireless doorbell no subscription", "wireless doorbell subscription"),
    ("cordless drill", "corded drill"),
    ("snacks free from nuts", "nut snacks"),
    ("bread no gluten no dairy", "gluten free bread"),
]
KEPT = [
    ("faucet without sprayer", "faucets no sprayer"),
    ("faucet w/o sprayer", "faucet without sprayer"),
    ("unscented candles", "fragrance free candles"),
    ("peanut butter no sugar", "unsweetened peanut butter"),
    ("sugar free candy", "candy no sugar"),
    ("dog food no chicken", "chicken free dog food"),
    ("non slip bath mat", "anti slip bath mat"),
    ("non slip bath mat", "slip resistant bath mat"),
    ("decaf coffee", "caffeine free coffee"),
    ("mens hoodie no zipper", "hoodie for men without zip"),
    ("bed no box spring needed", "bed without boxspring"),
    ("bluetooth mouse", "wireless mouse"),
    ("free weights", "dumbbells"),
    ("hands free phone holder", "phone holder for car"),
    ("no 2 pencils", "#2 pencils"),
    ("stainless steel sink", "steel sink"),
    ("unicorn plush", "stuffed unicorn"),
    ("garden hose", "water hose"),
]
ADDED = [
    ("dog food", "grain free dog food"),
    ("scented candles", "unscented candles"),
    ("hammock with straps", "hammock without straps"),
    ("corded drill", "cordless drill"),
    ("ceiling fan", "ceiling fan without light"),
]


@pytest.mark.parametrize(("query", "rewrite"), [*TURNED, *ADDED])
def test_a_negation_that_is_lost_added_or_turned_round_is_found(query: str, rewrite: str) -> None:
    assert not keeps_polarity(query, rewrite)


@pytest.mark.parametrize(("query", "rewrite"), KEPT)
def test_the_same_exclusion_in_other_words_is_kept(query: str, rewrite: str) -> None:
    assert keeps_polarity(query, rewrite)
