from __future__ import annotations

from training.data.brands import MIN_TITLES, brands


def titles(start: str, count: int, rest: str = "thing") -> list[str]:
    return [f"{start} {rest} {number}" for number in range(count)]


def test_a_word_that_titles_begin_with_and_hold_nowhere_else() -> None:
    assert brands(titles("DeWalt", MIN_TITLES, "x1")) == ["dewalt"]
    assert brands(titles("DeWalt", MIN_TITLES - 1, "x1")) == []


def test_a_kind_of_thing_is_no_brand() -> None:
    # "steel" begins 20 titles and stands inside 20 more: it leads only half of them.
    inside = [f"item{number} steel" for number in range(20)]
    assert brands([*titles("steel", 20, "x1"), *inside]) == []


def test_two_words_that_always_go_together() -> None:
    assert brands(titles("Hampton Bay", 20)) == ["hampton bay"]


def test_numbers_and_short_words_are_no_brands() -> None:
    assert brands([*titles("3m", 20, "x1"), *titles("GE", 20, "x1")]) == []


def test_no_titles() -> None:
    assert brands([]) == []
    assert brands(["", "  "]) == []
