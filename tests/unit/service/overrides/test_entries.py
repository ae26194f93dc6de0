"""What an override may say."""

from __future__ import annotations

from datetime import date, datetime
from typing import Any

import pytest

from service.errors import InvalidRequest
from service.overrides.entries import Pin, read_entries, read_entry
from tests.support.overrides import block, pin, term


def refused(content: object) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        read_entry(content)
    return {error.field: error.detail for error in caught.value.errors}


def test_texts_are_normalised_as_queries_are_but_keep_their_case() -> None:
    found = read_entry(pin("  iPhone\u200b  15\u00bd ", "Apple  iPhone", reason=" a\nb "))
    assert isinstance(found, Pin)
    assert (found.query, found.rewrites, found.reason) == (
        "iPhone 15 1/2", ["Apple iPhone"], "a b",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("field", "text", "longest"),
    [("author", "\ufdfa" * 4, 64), ("reason", "\ufdfa" * 28, 500), ("query", "\ufdfa" * 15, 256)],
)
def test_text_that_normalising_makes_too_long_is_refused(
    field: str, text: str, longest: int
) -> None:
    assert f"at most {longest}" in refused(block("a") | {field: text})[field]
    shorter = read_entry(block("a") | {field: text[1:]})
    assert read_entry(shorter.stored()) == shorter, "what is stored can be read again"


def test_times_are_kept_in_utc_to_the_microsecond() -> None:
    found = read_entry(block("a", expires_at="2030-01-31T18:00:00.000001+01:00"))
    assert found.stored()["expires_at"] == "2030-01-31T17:00:00.000001Z"
    assert read_entry(found.stored()) == found


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no kind": ({"query": "a", "reason": "b"}, "kind"),
    "another kind": (block("a", kind="block"), "kind"),
    "a list as kind": (block("a", kind=["pin"]), "kind"),
    "no reason": ({"kind": "block_query", "query": "a"}, "reason"),
    "a blank reason": (block("a", reason=" \u200b"), "reason"),
    "a long reason": (block("a", reason="x" * 501), "reason"),
    "no query": ({"kind": "block_query", "reason": "b"}, "query"),
    "a blank query": (block("\u200b "), "query"),
    "a long query": (block("x" * 257), "query"),
    "a very long query": (block(" " * 5000), "query"),
    "a number as query": (block(2024), "query"),  # type: ignore[arg-type]
    "a flag as query": (block(False), "query"),  # type: ignore[arg-type]
    "a field of another kind": (block("a", rewrites=["b"]), "rewrites"),
    "a misspelt field": (block("a", expire_at="2030-01-01T00:00:00Z"), "expire_at"),
    "a term without a word": (term("--- !"), "term"),
    "no rewrites": (pin("a"), "rewrites"),
    "too many rewrites": (pin("a", *(f"b{i}" for i in range(33))), "rewrites"),
    "a blank rewrite": (pin("a", "b", " "), "rewrites.1"),
    "the query as rewrite": (pin("a b", "c", "A  B"), "rewrites.1"),
    "a rewrite twice": (pin("a", "b", "c", "B"), "rewrites.2"),
    "a time without a zone": (block("a", expires_at="2030-01-01T00:00:00"), "expires_at"),
    "a day": (block("a", expires_at="2030-01-01"), "expires_at"),
    "a day of YAML": (block("a", expires_at=date(2030, 1, 1)), "expires_at"),
    "a time of YAML without a zone": (
        block("a", expires_at=datetime(2030, 1, 1)),  # noqa: DTZ001 - that is the point
        "expires_at",
    ),
    "seconds": (block("a", expires_at=1_900_000_000), "expires_at"),
    "the end of time": (block("a", expires_at="9999-12-31T23:59:59-12:00"), "expires_at"),
    "an odd id": (block("a", id="a/b"), "id"),
    "a blank author": (block("a", author=" "), "author"),
}


@pytest.mark.parametrize(("content", "field"), BAD.values(), ids=BAD.keys())
def test_each_mistake_is_named(content: dict[str, Any], field: str) -> None:
    assert list(refused(content)) == [field]


def test_mistakes_of_a_list_are_named_by_place() -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_entries([block("a"), 5, pin("b", " ")], most=10)
    assert [error.field for error in caught.value.errors] == [
        "overrides.1", "overrides.2.rewrites.0",
    ]  # fmt: skip


def test_a_long_list_of_mistakes_is_cut_and_a_long_list_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        read_entries([block("")] * 500, most=500)
    assert len(caught.value.errors) == 20
    with pytest.raises(InvalidRequest, match="at most 499"):
        read_entries([block("a")] * 500, most=499)
