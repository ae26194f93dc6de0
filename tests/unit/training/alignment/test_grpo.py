"""Sampling, likelihoods and the reference of GRPO, on a tiny base, against transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny_llama import tiny_recipe, write_base
from training.alignment.grpo import copy_to_reference, summary
from training.alignment.likelihood import log_probs, pack_groups
from training.alignment.sampler import Sampler
from training.finetuning.model import Trainee, load_trainee
from training.recipe import Recipe

PROMPTS = ("red hammer", "oak", "a much longer query about ladders", "tap")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base") / "base"
    write_base(folder)
    return folder


@pytest.fixture
def trainee(base: Path) -> Trainee:
    """With an adapter, and marker rows, that are far from the base's."""
    found = load_trainee(base, Recipe.model_validate(tiny_recipe(base)))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, tensor in found.model.named_parameters():
            if "lora_B" in name or "trainable_tokens" in name:
                tensor.add_(torch.randn(tensor.shape, generator=generator) * 0.3)
    found.model.eval()
    return found


def completions(trainee: Trainee) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and completions: groups of two, of several lengths, one out of order."""
    labels = trainee.prompts.labels
    texts = [(0, "steel hammer"), (1, "o"), (0, "mallet"), (2, "steps"), (1, "tree"), (2, "x")]
    prompts = [trainee.prompts.rewrite_prompt(PROMPTS[i]) for i, _ in texts]
    ends = [labels.relevant, labels.irrelevant]
    return prompts, [[*trainee.prompts.encode(t), ends[i % 2]] for i, (_, t) in enumerate(texts)]


@pytest.mark.parametrize("row_tokens", [16, 64, 512])
def test_packed_likelihoods_are_those_of_single_sequences(
    trainee: Trainee, row_tokens: int
) -> None:
    prompts, sampled = completions(trainee)
    model = trainee.model.float()
    chosen, spread = log_probs(
        model.get_base_model(), prompts, sampled,
        pad_id=0, temperature=0.7, row_tokens=row_tokens,
    )  # fmt: skip
    assert chosen.shape == spread.shape == (len(sampled), max(map(len, sampled)))
    for index, (prompt, completion) in enumerate(zip(prompts, sampled, strict=True)):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + completion])).logits[0].float() / 0.7
        every = torch.log_softmax(logits[len(prompt) - 1 : -1], dim=-1)
        expected = every[torch.arange(len(completion)), torch.tensor(completion)]
        torch.testing.assert_close(chosen[index, : len(completion)], expected, rtol=1e-3, atol=1e-4)
        entropy = -(every.exp() * every).sum(-1)
        torch.testing.assert_close(spread[index, : len(completion)], entropy, rtol=1e-3, atol=1e-4)
        assert not chosen[index, len(completion) :].any()


def test_likelihoods_teach_the_adapter_and_the_rows_of_the_tags(trainee: Trainee) -> None:
    prompts, sampled = completions(trainee)
    chosen, spread = log_probs(
        trainee.model.get_base_model(), prompts, sampled, pad_id=0, temperature=1.0
    )
    chosen.sum().backward()  # type: ignore[no-untyped-call]
    assert not spread.requires_grad
    taught = {n for n, p in trainee.model.named_parameters() if p.grad is not None and p.grad.any()}
    assert any("lora_A" in name for name in taught)
    assert any("trainable_tokens" in name for name in taught)


def test_each_prompt_is_computed_once_for_its_group(trainee: Trainee) -> None:
    prompts, sampled = completions(trainee)
    rows, order = pack_groups(prompts, sampled, 512)
    assert len(rows) == 1
    assert sorted(order) == list(range(len(sampled)))
    distinct = {tuple(p) for p in prompts}
    assert len(rows[0].ids) == sum(map(len, distinct)) + sum(len(c) - 1 for c in sampled)
    assert len(rows[0].target) == sum(map(len, sampled))


def test_a_group_that_fits_into_no_row_has_its_own(trainee: Trainee) -> None:
    prompts, sampled = completions(trainee)
    rows, _ = pack_groups(prompts, sampled, 1)
    assert len(rows) == 3


class TestSampler:
    def test_weights_are_those_of_merging(self, trainee: Trainee) -> None:
        sampler = Sampler(trainee)
        with torch.no_grad():
            for name, tensor in trainee.model.named_parameters():
                if "lora_" in name or "trainable_tokens" in name:
                    tensor.add_(0.1)
        sampler.refresh()
        merged: Any = Sampler(trainee)._merged
        expected = dict(merged.named_parameters())
        for name, tensor in sampler._merged.named_parameters():
            torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)

    def test_what_is_learnt_is_taken_over_only_when_told(self, trainee: Trainee) -> None:
        sampler = Sampler(trainee)
        before = [p.clone() for p in sampler._merged.parameters()]
        with torch.no_grad():
            for name, tensor in trainee.model.named_parameters():
                if "lora_B" in name:
                    tensor.add_(0.5)
        assert all(
            torch.equal(a, b) for a, b in zip(before, sampler._merged.parameters(), strict=True)
        )
        sampler.refresh()
        assert not all(
            torch.equal(a, b) for a, b in zip(before, sampler._merged.parameters(), strict=True)
        )

    def test_without_chance_it_says_what_the_model_says(self, trainee: Trainee) -> None:
        trainee.model.float()
        sampler = Sampler(trainee)
        sampler._merged.float()
        sampler.refresh()
        labels = trainee.prompts.labels
        prompts = [trainee.prompts.rewrite_prompt(q) for q in PROMPTS]
        drawn = sampler.draw(prompts, temperature=1e-4, max_tokens=12)
        for prompt, found in zip(prompts, drawn, strict=True):
            alone: list[int] = []
            while len(alone) < 12 and (
                not alone or alone[-1] not in (labels.relevant, labels.irrelevant)
            ):
                with torch.no_grad():
                    logits = trainee.model(torch.tensor([prompt + alone])).logits[0, -1]
                alone.append(int(logits.argmax()))
            assert found == alone

    def test_samples_end_by_a_tag_or_at_the_limit(self, trainee: Trainee) -> None:
        torch.manual_seed(1)
        labels = trainee.prompts.labels
        stops = {labels.relevant, labels.irrelevant}
        prompts = [trainee.prompts.rewrite_prompt(PROMPTS[i % 4]) for i in range(64)]
        drawn = Sampler(trainee).draw(prompts, temperature=3.0, max_tokens=40)
        assert len(drawn) == 64
        for found in drawn:
            assert not stops & set(found[:-1])
            assert found[-1] in stops or len(found) == 40
        assert len({len(found) for found in drawn}) > 3

    def test_a_seed_decides(self, trainee: Trainee) -> None:
        sampler = Sampler(trainee)
        prompts = [trainee.prompts.rewrite_prompt("oak")] * 8
        found = []
        for _ in range(2):
            torch.manual_seed(5)
            found.append(sampler.draw(prompts, temperature=4.0, max_tokens=8))
        assert found[0] == found[1]
        assert len({tuple(one) for one in found[0]}) > 1


def test_the_reference_is_the_model_in_every_tensor(trainee: Trainee) -> None:
    model: Any = trainee.model
    model.add_adapter("ref", model.peft_config["default"])
    copy_to_reference(model)
    tensors = dict(model.named_parameters())
    pairs = [
        (tensor, tensors[name.replace("default", "ref")])
        for name, tensor in tensors.items()
        if "default" in name
    ]
    assert any("trainable_tokens" in name for name in tensors if "ref" in name)
    assert len(pairs) > 10
    assert all(torch.equal(mine, reference) for mine, reference in pairs)
    assert not any(tensor.requires_grad for name, tensor in tensors.items() if "ref" in name)
    assert any(tensor.requires_grad for name, tensor in tensors.items() if "default" in name)


def test_a_summary_is_of_means() -> None:
    history = [
        {"reward": 1.0, "rewards/gain/mean": 0.25, "rewards/gain/std": 9.0, "kl": 0.0, "step": 1},
        {"reward": 2.0, "rewards/gain/mean": 0.75, "rewards/gain/std": 9.0, "kl": 0.5, "step": 2},
    ]
    assert summary(history) == {"reward": 1.5, "gain": 0.5, "kl": 0.25}
