"""The prompted base on a random model: what it says is nonsense, how it is asked is not."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from tests.support.tiny_llama import write_base

QUERIES = ["steele stake", "led", "outdoor ceiling fan 52 inch"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_base(folder)
    return folder


def test_a_query_gets_the_same_greedy_answer_in_any_company(base: Path) -> None:
    from training.evaluation.prompted import PromptedBase

    together = PromptedBase(base, samples=2)._draw(QUERIES)
    assert len(together) == 6
    assert any(together)
    for index, query in enumerate(QUERIES):
        # Filled up to the longest prompt beside it, and alone.
        assert PromptedBase(base, samples=1)._draw([query]) == [together[2 * index]]


def test_rewrites_are_distinct_and_none_is_the_query(base: Path) -> None:
    from training.evaluation.prompted import PromptedBase

    model = PromptedBase(base, samples=3)
    model._draw = lambda queries: ["A b", "a  B", "Led ", "", "led", "x"][: 3 * len(queries)]  # type: ignore[method-assign]
    assert model(["steele stake", "led"]) == {"steele stake": ["a b", "led"], "led": ["x"]}


def test_a_seed_decides(base: Path) -> None:
    from training.evaluation.prompted import PromptedBase

    drawn = [PromptedBase(base, samples=4, seed=seed)._draw(QUERIES) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
