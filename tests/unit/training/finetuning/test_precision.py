"""What training computes in, and how long it says it will take."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny_llama import tiny_recipe, write_base
from training.finetuning import precision as module
from training.finetuning.model import Trainee, load_trainee
from training.finetuning.precision import Chosen, Precision, choose_precision, in_words
from training.recipe import DomainStage, GrpoStage, Optimiser, Recipe


@pytest.fixture
def trainee(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trainee]:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more would only wait for each other
    write_base(tmp_path / "base")
    recipe = Recipe.model_validate(tiny_recipe(tmp_path / "base"))
    yield load_trainee(tmp_path / "base", recipe)
    torch.set_num_threads(threads)


def frozen(trainee: Trainee) -> set[Any]:
    return {p.dtype for p in trainee.model.parameters() if not p.requires_grad}


@pytest.mark.parametrize(
    ("bfloat16", "float32", "chosen"),
    [
        (24.0, 4.0, "float32"),
        (0.7, 1.4, "bfloat16"),
        (1.0, 0.95, "bfloat16"),
        (0.09, 0.01, "bfloat16"),
    ],
)
def test_the_faster_is_taken_if_the_difference_is_felt(
    trainee: Trainee, monkeypatch: pytest.MonkeyPatch,
    bfloat16: float, float32: float, chosen: Precision,
) -> None:  # fmt: skip
    took = {"bfloat16": bfloat16, "float32": float32}
    monkeypatch.setattr(module, "_step", lambda _, precision, patience_s: took[precision])
    found = choose_precision(trainee.model, "auto")
    assert found.precision == chosen
    assert found.seconds_per_token == took[chosen] / 256
    assert f"{bfloat16:.2f} s in bfloat16" in found.reason
    assert frozen(trainee) == {getattr(torch, chosen)}


@pytest.mark.parametrize("wanted", ["bfloat16", "float32", "auto"])
def test_a_step_is_timed_and_leaves_no_trace(trainee: Trainee, wanted: module.Wanted) -> None:
    before = torch.get_rng_state()
    found = choose_precision(trainee.model, wanted)
    assert wanted in ("auto", found.precision)
    assert (found.seconds_per_token or 0) > 0
    assert torch.equal(torch.get_rng_state(), before)
    trained = [p for p in trainee.model.parameters() if p.requires_grad]
    assert all(p.grad is None and p.dtype == torch.float32 for p in trained)


def test_a_gpu_is_not_asked(trainee: Trainee, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_precision(trainee.model, "auto") == Chosen("bfloat16", "there is a GPU")


def test_the_rest_of_the_recipe_is_estimated() -> None:
    optimiser = Optimiser(learning_rate=1e-3)
    domain = DomainStage(kind="domain", tokens=1_000_000, optimiser=optimiser)
    grpo = GrpoStage(kind="grpo", steps=10, learning_rate=1e-5, rewards={"increment": 1.0})
    chosen = Chosen("float32", "because", 0.0078)
    assert chosen.told([domain]).endswith("1,000,000 tokens, about 2 h 10 min on this machine")
    assert "or more on this machine" in chosen.told([domain, grpo])
    assert chosen.told([]) == "training in float32: because"
    assert [in_words(s) for s in (40, 720, 3600)] == ["40 s", "12 min", "1 h 0 min"]
