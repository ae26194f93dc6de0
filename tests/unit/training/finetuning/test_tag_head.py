"""The tag fitted again, on a tiny base and on numbers worked out another way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from transformers import LlamaForCausalLM

from tests.support.tiny_llama import tiny_recipe, write_base
from training.data.pairs import QueryPairs, Scored
from training.errors import DataError, RunError
from training.finetuning.model import Trainee, load_trainee
from training.finetuning.tag_head import (
    Judged,
    calibrate,
    fit_row,
    hidden_at_tags,
    label_row,
    refit,
    set_label_row,
)
from training.recipe import Recipe


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "base"
    write_base(folder)
    return folder


@pytest.fixture
def trainee(base: Path) -> Trainee:
    return made(base)


def made(base: Path) -> Trainee:
    """A trainee whose marker rows are far from the base's."""
    found = load_trainee(base, Recipe.model_validate(tiny_recipe(base)))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in found.model.named_parameters():
            if "trainable_tokens" in name:
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.3)
    return found


def pairs(count: int = 12) -> list[QueryPairs]:
    """Rewrites in digits are irrelevant, others relevant."""
    return [
        QueryPairs(
            f"query {i}",
            accept=[Scored("abc"[: 1 + i % 3] * 2, "test", 1.0, 0.0)],
            reject=[Scored(str(10 + 7 * i), "test", 0.0, 0.0)],
        )
        for i in range(count)
    ]


def synthetic(count: int = 4000) -> tuple[Judged, torch.Tensor]:
    """Hidden states with a common mean, and labels drawn by a row that is given too."""
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(count, 6, generator=generator) + torch.tensor([3.0, 0, 0, 0, 0, 0])
    row = torch.tensor([0.0, 1.5, -1.0, 0.5, 0, 0])
    chance = torch.rand(count, generator=generator)
    return Judged(hidden, (chance < torch.sigmoid(hidden @ row)).float()), row


@pytest.mark.parametrize("ridge", [0.001, 0.1])
def test_the_fit_is_a_ridge_logistic_regression_around_its_start(ridge: float) -> None:
    judged, _ = synthetic(500)
    ours = fit_row(judged, torch.zeros(6), ridge)
    theirs = LogisticRegression(C=1 / (2 * ridge * 500), fit_intercept=False, tol=1e-8)
    theirs.fit(judged.hidden.numpy(), judged.labels.numpy())
    assert ours.tolist() == pytest.approx(theirs.coef_[0].tolist(), abs=2e-3)


def test_a_heavy_penalty_leaves_the_row_where_it_was() -> None:
    judged, row = synthetic(500)
    start = row + 1
    assert fit_row(judged, start, 1e6).tolist() == pytest.approx(start.tolist(), abs=1e-4)


def test_calibration_undoes_a_scale_and_a_shift() -> None:
    judged, row = synthetic()
    shifted = 3 * row + 0.7 * judged.hidden.mean(dim=0) / judged.hidden.mean(dim=0).square().sum()
    mended = calibrate(judged, shifted)
    assert judged.hidden @ mended == pytest.approx(judged.hidden @ row, abs=0.6)
    before, after = judged.figures(shifted), judged.figures(mended)
    assert before["calibration_error"] > 0.08
    assert after["calibration_error"] < 0.03


def test_calibration_keeps_what_is_right() -> None:
    judged, row = synthetic()
    assert calibrate(judged, row).tolist() == pytest.approx(row.tolist(), abs=0.1)


def test_hidden_states_are_those_of_the_single_sequences(trainee: Trainee) -> None:
    trainee.model.float()
    found = hidden_at_tags(trainee, pairs(5), 64)
    singles = []
    for one in pairs(5):
        for item in one.accept + one.reject:
            prompt = trainee.prompts.rewrite_prompt(one.query)
            ids = torch.tensor([[*prompt, *trainee.prompts.encode(item.text)]])
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
                out: Any = trainee.model.get_base_model().model(input_ids=ids)
            singles.append(out.last_hidden_state[0, -1].float())
    assert found.labels.sum() == 5
    # Rows are ordered by length, so compare as sets: each single one has its like.
    far = torch.cdist(torch.stack(singles), found.hidden).amin(dim=1)
    assert far.max() < 0.2
    assert torch.cdist(found.hidden, found.hidden).fill_diagonal_(9).median() > 0.4


def test_only_the_row_of_irrelevant_changes(trainee: Trainee) -> None:
    before = {name: tensor.clone() for name, tensor in trainee.model.state_dict().items()}
    labels = trainee.prompts.labels
    ids = torch.tensor([trainee.prompts.rewrite_prompt("red hammer")])
    trainee.model.eval()
    with torch.no_grad():
        said = trainee.model(ids).logits
    record = refit(trainee, pairs(30), pairs(12), ridge=1e-4, max_tokens=64)
    changed = [
        name
        for name, tensor in trainee.model.state_dict().items()
        if not torch.equal(tensor, before[name])
    ]
    assert changed
    assert all("trainable_tokens_delta" in name for name in changed)
    for name in changed:
        moved = (trainee.model.state_dict()[name] != before[name]).any(dim=1)
        assert moved.sum() == 1
    with torch.no_grad():
        now = trainee.model(ids).logits
    others = [i for i in range(said.shape[-1]) if i != labels.irrelevant]
    assert torch.equal(now[..., others], said[..., others])
    assert record["pairs"] == 60
    assert record["development_pairs"] == 24
    assert record["after"]["accuracy"] > max(0.9, record["before"]["accuracy"])


def test_the_row_that_is_set_is_the_one_that_is_there(trainee: Trainee) -> None:
    row = torch.linspace(-1, 1, 64)
    set_label_row(trainee, row)
    assert label_row(trainee).tolist() == pytest.approx(row.tolist(), abs=1e-6)


def test_pairs_of_one_kind_are_refused(trainee: Trainee) -> None:
    alike = [QueryPairs("pipe", accept=[Scored("tube", "test", 1.0, 0.0)])]
    with pytest.raises(DataError, match="no pairs of both kinds"):
        hidden_at_tags(trainee, alike, 64)
    with pytest.raises(DataError, match="no pairs of both kinds"):
        hidden_at_tags(trainee, [], 64)


def test_a_base_with_output_weights_of_its_own_is_refused(base: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(base)
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
    apart = tmp_path / "apart"
    model.save_pretrained(apart)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (apart / name).write_bytes((base / name).read_bytes())
    with pytest.raises(RunError, match="leave the tags stage out"):
        refit(made(apart), pairs(), pairs(), ridge=0.01, max_tokens=64)
