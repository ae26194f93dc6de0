"""Looking up queries and terms."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidRequest
from service.filtering.words import words
from service.overrides.entries import BlockTerm, Entry, read_entry
from service.overrides.table import Table, TableCodec
from tests.support.overrides import NOW, SOON, block, entry, pin, term


def table(*contents: dict[str, Any]) -> Table:
    return Table([entry(content) for content in contents])


def found(where: Table, text: str) -> list[str]:
    return [one.subject for one in where.terms_in(words(text), NOW)]


@pytest.mark.parametrize(
    ("text", "held"),
    [
        ("nail gun", ["gun"]),
        ("Nail-GUNS!", ["gun"]),
        ("nailgun", []),
        ("gunny sack", []),
        ("toy pistol", ["toy pistol"]),
        ("pistol toy", []),
        ("toy water pistol", []),
        ("toy pistol gun", ["toy pistol", "gun"]),
        ("wd 40 spray", ["wd 40"]),
        ("WD40", ["wd 40"]),
        ("wd 400", []),
        ("", []),
    ],
)
def test_terms_are_whole_words_in_order(text: str, held: list[str]) -> None:
    assert found(table(term("gun"), term("Toy Pistol"), term("WD-40")), text) == held


word_lists = st.lists(st.sampled_from(["ab", "cd", "ef", "12"]), min_size=1, max_size=5)


@given(st.lists(word_lists, max_size=6, unique_by=tuple), word_lists)
def test_terms_are_found_wherever_they_stand(terms: list[list[str]], text: list[str]) -> None:
    where = table(*(term(" ".join(one)) for one in terms))
    expected = {
        " ".join(one) for one in terms for i in range(len(text)) if text[i : i + len(one)] == one
    }
    assert set(found(where, " ".join(text))) == expected


@pytest.mark.parametrize(
    ("first", "second", "field"),
    [
        (block("a stake"), pin("A Stake", "b", id="other"), "query"),
        (term("guns"), term("Gun!", id="other"), "term"),
        (block("a"), block("b", id="a"), "id"),
    ],
)
def test_two_about_the_same_thing_are_refused(
    first: dict[str, Any], second: dict[str, Any], field: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        table(first, second)
    assert [error.field for error in caught.value.errors] == [f"overrides.1.{field}"]


def test_a_query_and_a_term_may_be_the_same() -> None:
    assert len(table(block("gun"), term("gun", id="term"))) == 2


def test_an_expired_entry_is_not_found_and_makes_way() -> None:
    where = table(block("a", expires_at=SOON))
    again = read_entry(pin("A", "b"))
    assert where.of("a", NOW) is not None
    assert where.conflict(again, NOW) is where.entries[0]
    assert where.of("a", NOW + 10) is None
    assert where.conflict(again, NOW + 10) is None


def rows(*contents: dict[str, Any]) -> dict[str, Any]:
    return {"overrides": [entry(content).stored() for content in contents]}


def test_what_is_dumped_is_parsed_again() -> None:
    body = rows(block("a", expires_at=SOON), term("gun"), pin("b", "c", "d"))
    codec = TableCodec()
    parsed = codec.parse(body)
    assert [one.kind for one in parsed.entries] == ["block_query", "block_term", "pin"]
    assert codec.dump(parsed) == body
    assert TableCodec().dump(parsed) == body


def test_what_has_not_changed_is_not_checked_again() -> None:
    codec = TableCodec()
    before = codec.parse(rows(block("a"), block("b")))
    after = codec.parse(copy.deepcopy(rows(block("a"), pin("b", "c"))))
    assert after.entries[0] is before.entries[0]
    assert after.entries[1].kind == "pin"


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"overrides": {}},
        {"overrides": [5]},
        {"overrides": [block("a")]},
        {"overrides": [block("", id="a", author="ada")]},
        {"overrides": [block("a", id="x"), block("b", id="x")]},
        {"overrides": [block("a", id="x"), block("A", id="y")]},
    ],
)
def test_a_body_that_is_none_of_ours_is_a_value_error(body: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r".+"):
        TableCodec().parse(body)


def test_many_terms_with_one_first_word_are_one_look_up_for_each_length() -> None:
    entries: list[Entry] = [
        BlockTerm(kind="block_term", term=f"toy w{chr(97 + i % 26)} {'x' * (i // 26 + 1)}",
                  id=str(i), author="ada", reason="r")
        for i in range(520)
    ]  # fmt: skip
    where = Table(entries)
    assert where._lengths == {"toy": [3]}
    assert found(where, "a toy wc xxx") == ["toy wc xxx"]
