from __future__ import annotations

import pytest

from training.data.folds import compact, fold_of, variants


def test_the_fold_is_the_md5_modulo_ten() -> None:
    # MD5("steel stake"), as `printf 'steel stake' | md5sum` prints it. Powers of 16 end in 6, so
    # the number modulo ten is its last hex digit plus six times the sum of the others.
    digest = "54e94e17606dfd6fbb9c8d0fccef59e8"
    digits = [int(digit, 16) for digit in digest]
    by_hand = (digits[-1] + 6 * sum(digits[:-1])) % 10
    assert by_hand == 0
    assert fold_of("steel stake") == by_hand
    assert fold_of("Steel STAKE") == by_hand


def test_every_fold_is_used_about_equally() -> None:
    counts = [0] * 10
    for number in range(5000):
        counts[fold_of(f"query {number}")] += 1
    assert min(counts) > 400


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("steel stake", "stake steel"),
        ("steel stake", "steel stakes"),
        ("door mat", "doormat"),
        ("wall paper", "wallpaper"),
        ("3/4 in pvc", "3/4-in PVC"),
        ("outdoor ceiling fan", "outdor ceiling fan"),
        ("outdoor ceiling fan", "the outdoor ceiling fan"),
    ],
    ids=["word order", "plural", "space", "space, unsorted", "punctuation", "letter", "stop word"],
)
def test_variants_are_found(one: str, other: str) -> None:
    assert variants([one], [other]) == {one}
    assert variants([other], [one]) == {other}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3/8 pvc", "3/4 pvc"),
        ("60 ceiling fan", "70 ceiling fan"),
        ("steel stake", "wood stake"),
        ("gas range", "36 gas range"),
        ("glass shower door", "shower door"),
    ],
)
def test_other_needs_are_no_variants(one: str, other: str) -> None:
    assert variants([one], [other]) == set()


def test_a_long_query_with_another_size_counts_as_a_variant() -> None:
    # By letters alone a size is a small part of a long query. It errs on the safe side: such a
    # query is left out of training.
    assert variants(["3/8 in pvc pipe fitting"], ["3/4 in pvc pipe fitting"])


def test_nothing_to_protect_or_to_check() -> None:
    assert variants([], ["x"]) == set()
    assert variants(["x"], []) == set()


def test_it_looks_at_every_query_of_many() -> None:
    many = [f"{number} something {number}" for number in range(3000)] + ["steele stake"]
    assert variants(many, ["steel stake"]) == {"steele stake"}


def test_compact_has_no_order_space_or_inflection() -> None:
    assert compact("Garden Hoses") == compact("hose  garden")
    assert compact("the of and") == ""
