from __future__ import annotations

import random

import pytest

from training.ab.user_model import Browsed, Chances, UserModel, browse, chances, together

MODEL = UserModel(bad=0.1, perfect=0.5, perseverance=0.5, buys=0.4)


def test_grades_become_probabilities() -> None:
    assert MODEL.attractiveness(1) == pytest.approx(0.1)
    assert MODEL.attractiveness(2) == pytest.approx(0.3)
    assert MODEL.attractiveness(3) == pytest.approx(0.5)
    # Grades 0, 2 and 4 of expected reciprocal rank: 0/16, 3/16, 15/16.
    assert [MODEL.satisfaction(g) for g in (1, 2, 3)] == [0.0, 0.1875, 0.9375]


def test_chances_of_a_page_worked_by_hand() -> None:
    # First product: click 0.5, satisfied 0.5 * 15/16. It is passed with 1 - 15/32 = 17/32 and
    # without a click with 1/2, each times 1/2. The second: click 0.3, satisfied 0.3 * 3/16.
    found = chances([3, 2], MODEL)
    assert found.click == pytest.approx(0.5 + 0.25 * 0.3)
    assert found.purchase == pytest.approx(0.4 * (15 / 32 + 17 / 64 * 0.3 * 3 / 16))


def test_a_better_product_is_worth_more_the_higher_it_stands() -> None:
    values = [chances(grades, MODEL).purchase for grades in ([1, 1, 3], [1, 3, 1], [3, 1, 1])]
    assert values == sorted(values)
    assert len(set(values)) == 3


def test_an_empty_page_sells_nothing() -> None:
    assert chances([], MODEL) == Chances(0, 0)
    assert browse([], MODEL, random.Random(1)) == Browsed()


def test_a_certain_shopper_takes_the_first_product_that_pleases() -> None:
    sure = UserModel(bad=1, perfect=1, perseverance=1, buys=1)
    # Grade 1 satisfies nobody: it is clicked, and the shopper goes on.
    seen = browse([1, 1, 1], sure, random.Random(1))
    assert seen == Browsed((1, 2, 3), None)
    assert browse([3] * 40, UserModel(1, 1, 0, 0), random.Random(1)).bought is None


def test_nobody_reads_on_without_perseverance() -> None:
    hasty = UserModel(bad=1, perfect=1, perseverance=0, buys=1)
    assert browse([1, 3, 3], hasty, random.Random(1)) == Browsed((1,), None)


def test_what_is_drawn_has_the_chances_that_are_told() -> None:
    grades = [1.0, 2.33, 1.0, 3.0, 2.0]
    rng = random.Random(5)
    drawn = [browse(grades, UserModel(), rng) for _ in range(20_000)]
    expected = chances(grades, UserModel())
    # Five standard errors of a share of 20,000.
    assert sum(bool(d.clicks) for d in drawn) / 20_000 == pytest.approx(expected.click, abs=0.018)
    bought = sum(d.bought is not None for d in drawn) / 20_000
    assert bought == pytest.approx(expected.purchase, abs=0.01)
    assert all(d.bought in (None, d.clicks[-1]) for d in drawn if d.clicks)


def test_the_same_seed_gives_the_same_shopper() -> None:
    runs = [[browse([2.0] * 24, UserModel(), rng) for _ in range(9)]
            for rng in (random.Random(3), random.Random(3))]  # fmt: skip
    assert runs[0] == runs[1]


def test_a_visit_is_one_page_after_another() -> None:
    visit = together([Chances(0.5, 0.1), Chances(0.2, 0.3)])
    assert visit.click == pytest.approx(0.6)
    assert visit.purchase == pytest.approx(0.37)
    assert together([]) == Chances(0, 0)


@pytest.mark.parametrize("wrong", [{"bad": -0.1}, {"buys": 1.5}, {"perseverance": float("nan")}])
def test_parameters_are_probabilities(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="is a probability"):
        UserModel(**wrong)
