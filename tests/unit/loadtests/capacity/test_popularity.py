from __future__ import annotations

import random
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest

from loadtests.capacity.popularity import (
    fitted_exponent,
    hit_ratio,
    of_log,
    read_log,
    replayed,
    zipf,
)


def drawn(exponent: float, *, queries: int, looks: int, seed: int = 7) -> list[int]:
    """A log in which queries are asked independently, by Zipf's law."""
    weights = list(accumulate(zipf(queries, exponent).tolist()))
    return random.Random(seed).choices(range(queries), cum_weights=weights, k=looks)


@pytest.mark.parametrize("exponent", [0.7, 1.0, 1.2])
def test_the_exponent_of_a_log_is_found_again(exponent: float) -> None:
    log = drawn(exponent, queries=2_000, looks=200_000)
    assert fitted_exponent(of_log(log)) == pytest.approx(exponent, abs=0.05)


@pytest.mark.parametrize("exponent", [0.6, 1.0])
@pytest.mark.parametrize("entries", [20, 200, 1_000])
def test_ches_approximation_is_what_an_lru_cache_does(exponent: float, entries: int) -> None:
    log = drawn(exponent, queries=2_000, looks=150_000)
    expected = hit_ratio(zipf(2_000, exponent), searches_per_s=5.0, entries=entries)
    # It is empty at first: what it then lacks is at most an entry each.
    assert replayed(log, entries) == pytest.approx(expected, abs=0.01 + entries / len(log))


def test_a_cache_without_a_bound_misses_once_in_each_life() -> None:
    # One query at rate r: r * ttl hits for each miss.
    assert hit_ratio(np.ones(1), searches_per_s=2.0, entries=1, ttl_s=4.0) == pytest.approx(8 / 9)


@pytest.mark.parametrize(("entries", "expected"), [(0, 0.0), (50, 1.0), (60, 1.0)])
def test_the_ends(entries: int, expected: float) -> None:
    assert hit_ratio(zipf(50, 1.0), searches_per_s=1.0, entries=entries) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("log", "entries", "share"),
    [("abab", 2, 0.5), ("abab", 1, 0.0), ("abcab", 2, 0.0), ("aab", 0, 0.0), ("", 2, 0.0)],
)
def test_replaying_by_hand(log: str, entries: int, share: float) -> None:
    assert replayed(log, entries) == share


def test_a_log_is_read_in_order_of_time_and_in_normal_form(tmp_path: Path) -> None:
    one, two = tmp_path / "1.csv", tmp_path / "2.csv"
    one.write_text("query,at\nSteel  Stake,2011-02\n , 2011-04\n")
    two.write_text("query,at\nrug,2011-01\n")
    assert read_log([one, two], time="at") == ["rug", "steel stake"]
    assert read_log([one]) == ["steel stake"]
    with pytest.raises(KeyError):
        read_log([one], column="text")
