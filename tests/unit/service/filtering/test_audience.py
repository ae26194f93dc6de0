"""A rewrite of a query for one audience is not for another."""

from __future__ import annotations

import pytest

from service.filtering.audience import keeps_audience


@pytest.mark.parametrize(
    ("query", "rewrite"),
    [
        ("womens dress", "girls dress"),
        ("mens running shoes", "women's running shoes"),
        ("kids bike helmet", "adult bike helmet"),
        ("boys raincoat", "girls raincoat"),
        ("dog bed", "cat bed"),
    ],
)
def test_another_audience_is_found(query: str, rewrite: str) -> None:
    assert not keeps_audience(query, rewrite)


@pytest.mark.parametrize(
    ("query", "rewrite"),
    [
        ("womens dress", "ladies dress"),
        ("kids bike helmet", "children's bike helmet"),
        ("boys raincoat", "kids rain jacket"),
        ("dog bed", "pet bed"),
        ("crib shoes", "infant booties"),
        ("baby blanket", "crib blanket"),
        ("sofa", "couch"),
    ],
)
def test_the_same_audience_or_none_is_kept(query: str, rewrite: str) -> None:
    assert keeps_audience(query, rewrite)
