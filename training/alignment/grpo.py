"""Alignment by Group Relative Policy Optimization on rewards of the search engine.

GRPO (arXiv 2402.03300) samples a group of rewrites for a query and moves the model toward those
with more than the mean reward of their group; a penalty keeps it near its start. The optimisation
is TRL's. This module adds the one-pass format: prompts as token ids, either label as the end of a
sample, packed groups, trained rows of the head, and a supervised loss on tags, which keeps the tags
accurate while the rewrites change.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from model_store.text import normalise
from training.alignment.feedback import Feedback, Sample
from training.alignment.likelihood import log_probs
from training.alignment.sampler import Sampler
from training.data.packing import Collator, Row, hidden_states
from training.errors import DataError
from training.finetuning.model import Trainee
from training.finetuning.stages import Journal, last_checkpoint, shared_arguments
from training.recipe import GrpoStage
from training.rewards import Rewards

with warnings.catch_warnings():
    # TRL warns of its own experimental features.
    warnings.simplefilter("ignore")
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

EPSILON_HIGH = 0.28
"""Upper clip of the ratio (lower: 0.2), as DAPO (arXiv 2503.14476) has it: rare words may grow."""


class GroupRewards:
    """Rewards of a batch of samples, computed once and passed to TRL by column."""

    def __init__(self, feedback: Feedback, trainee: Trainee, group: int) -> None:
        self._feedback, self._prompts, self._group = feedback, trainee.prompts, group
        self._last: tuple[list[list[int]], list[Rewards]] | None = None

    def column(self, name: str) -> Callable[..., list[float]]:
        """A reward function in TRL's form."""

        def reward(*, prompts: list[str], completion_ids: list[list[int]], **_: Any) -> list[float]:
            if self._last is None or self._last[0] is not completion_ids:
                self._last = (completion_ids, self.of(prompts, completion_ids))
            return [float(getattr(one, name)) for one in self._last[1]]

        reward.__name__ = name
        return reward

    def of(self, queries: Sequence[str], completions: Sequence[Sequence[int]]) -> list[Rewards]:
        """Rewards of samples, grouped by query."""
        groups = []
        for start in range(0, len(queries), self._group):
            part = completions[start : start + self._group]
            groups.append((queries[start], [self._sample(ids) for ids in part]))
        self._feedback.prepare(groups)
        return [one for query, group in groups for one in self._feedback.reward(query, group)]

    def _sample(self, ids: Sequence[int]) -> Sample:
        labels = self._prompts.labels
        tags = {labels.relevant: True, labels.irrelevant: False}
        tag = tags.get(ids[-1])
        body = ids if tag is None else ids[:-1]
        text = normalise(self._prompts.decode(body), fold_case=self._prompts.spec.fold_case)
        return Sample(text, tag)


class OnePassGrpo(GRPOTrainer):
    """TRL's trainer on packed groups, with a supervised loss on tags."""

    def __init__(
        self, *, trainee: Trainee, tag_rows: Sequence[Row], stage: GrpoStage, **kwargs: Any
    ) -> None:
        self._trainee, self._tag_rows, self._stage = trainee, list(tag_rows), stage
        self._sampler = Sampler(trainee)
        with _quiet():
            super().__init__(model=trainee.model, rollout_func=self._rollout, **kwargs)
        copy_to_reference(trainee.model)

    def create_model_card(self, *_args: Any, **_kwargs: Any) -> None:
        """Write none: a checkpoint is not a version."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load only the trained adapter.

        The base class would load the reference, which is in a folder of its own, and leave the
        trained adapter as it was at the start of the stage.
        """
        peft = model if model is not None else self.model
        peft.load_adapter(resume_from_checkpoint, "default", is_trainable=True)

    def _rollout(self, queries: list[str], _trainer: Any) -> dict[str, Any]:
        prompts = [self._trainee.prompts.rewrite_prompt(q) for q in queries]
        self._sampler.refresh()
        completions = self._sampler.draw(
            prompts, temperature=self.temperature, max_tokens=self.max_completion_length
        )
        return {"prompt_ids": prompts, "completion_ids": completions, "logprobs": None}

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        *_args: Any,
        **_kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor, None]:
        """See :func:`training.alignment.likelihood.log_probs`; shapes as in TRL."""
        split = input_ids.size(1) - logits_to_keep
        prompts, completions = [], []
        for ids, mask in zip(input_ids.tolist(), attention_mask.tolist(), strict=True):
            prompts.append([t for t, m in zip(ids[:split], mask[:split], strict=True) if m])
            completions.append([t for t, m in zip(ids[split:], mask[split:], strict=True) if m])
        base = self.accelerator.unwrap_model(model).get_base_model()
        with self.accelerator.autocast():
            chosen, spread = log_probs(
                base,
                prompts,
                completions,
                pad_id=self._trainee.pad_id,
                temperature=self.temperature,
            )
        beyond = (0, logits_to_keep - chosen.size(1))
        return functional.pad(chosen, beyond), functional.pad(spread, beyond), None

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> torch.Tensor:
        """The policy's loss + ``tag_weight`` x the two-label loss on some pairs to judge."""
        loss: torch.Tensor = super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        count = self._stage.tag_rows
        if not (count and self._stage.tag_weight and self._tag_rows):
            return loss
        start = self.state.global_step * count
        rows = [self._tag_rows[(start + i) % len(self._tag_rows)] for i in range(count)]
        tag = self._tag_loss(self.accelerator.unwrap_model(model).get_base_model(), rows)
        self._metrics["train"]["tag"].append(tag.item())
        return loss + self._stage.tag_weight * tag

    def _tag_loss(self, base: Any, rows: Sequence[Row]) -> torch.Tensor:
        labels = self._trainee.prompts.labels
        batch = Collator(self._trainee.pad_id)(rows)
        batch = {name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}
        with self.accelerator.autocast():
            both = base.lm_head(hidden_states(base, batch)[batch["tag_source"]])
        # Index 1 is RELEVANT, as in the tag tensor.
        both = both[:, [labels.irrelevant, labels.relevant]].float()
        accuracy = (both.argmax(-1) == batch["tag"]).float().mean().item()
        self._metrics["train"]["tag_accuracy"].append(accuracy)
        return functional.cross_entropy(both, batch["tag"])


def copy_to_reference(model: Any) -> None:
    """Make the adapter ``ref``, if there is one, the adapter ``default`` in every tensor, frozen.

    TRL copies the low-rank weights alone: the trained rows of the embedding would stay as the base
    has them, and every sample that ends in a tag would look far from the reference.
    """
    tensors = dict(model.named_parameters())
    for name, tensor in tensors.items():
        parts = name.split(".")
        if "default" in parts:
            twin = tensors.get(".".join("ref" if p == "default" else p for p in parts))
            if twin is not None:
                twin.data.copy_(tensor.data)
                # PEFT leaves its rows trainable: nothing would train them, but the optimiser
                # would count them, and not find them again in a run that goes on.
                twin.requires_grad_(requires_grad=False)


def align(
    trainee: Trainee,
    queries: Sequence[str],
    tag_rows: Sequence[Row],
    feedback: Feedback,
    stage: GrpoStage,
    *,
    max_tokens: int,
    run: Path,
    number: int,
    seed: int,
    checkpoint_every: int,
) -> dict[str, Any]:
    """Train one GRPO stage; continues from its newest whole checkpoint if there is one.

    Args:
        trainee: the model, its adapter that of the stage before.
        queries: in the order in which they are to be used, ``stage.queries_per_step`` a step.
        tag_rows: packed pairs to judge.
        feedback: the search engine and the judge.
        stage: of the recipe.
        max_tokens: of a sample, its tag included.
        run: the run's folder.
        number: of the stage.
        seed: of sampling.
        checkpoint_every: steps.

    Returns:
        steps, samples, seconds and the last figures.

    Raises:
        DataError: there are not enough queries for one step.
    """
    if len(queries) < stage.queries_per_step:
        raise DataError(
            f"stage {number} needs at least {stage.queries_per_step} queries with a relevant "
            f"product (queries_per_step), the training folds have {len(queries)}"
        )
    samples = stage.queries_per_step * stage.group
    folder = run / f"stage-{number}"
    arguments = GRPOConfig(
        **shared_arguments(folder, seed=seed, checkpoint_every=checkpoint_every, bf16=trainee.bf16),
        per_device_train_batch_size=samples,
        num_generations=stage.group,
        steps_per_generation=1,
        max_steps=stage.steps,
        max_completion_length=max_tokens,
        temperature=stage.temperature,
        beta=stage.beta,
        epsilon_high=EPSILON_HIGH,
        # Deviations within a group can be tiny and mean nothing: those of the batch scale.
        scale_rewards="batch",
        loss_type="dapo",
        reward_weights=list(stage.rewards.values()),
        shuffle_dataset=False,
        learning_rate=stage.learning_rate,
        warmup_steps=max(1, round(stage.warmup * stage.steps)),
        weight_decay=0.0,
        gradient_checkpointing=False,
        logging_steps=1,
    )
    if trainee.fast.pad_token is None:
        trainee.fast.pad_token = trainee.fast.convert_ids_to_tokens(trainee.pad_id)
    rewards = GroupRewards(feedback, trainee, stage.group)
    trainer = OnePassGrpo(
        trainee=trainee,
        tag_rows=tag_rows,
        stage=stage,
        args=arguments,
        reward_funcs=[rewards.column(name) for name in stage.rewards],
        train_dataset=Dataset.from_dict({"prompt": list(queries)}),
        processing_class=trainee.fast,
        callbacks=[Journal(run / "figures.jsonl", number)],
    )
    checkpoint = last_checkpoint(folder)
    result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return {
        "steps": result.global_step,
        "samples": result.global_step * samples,
        "queries": min(len(queries), result.global_step * stage.queries_per_step),
        "seconds": round(result.metrics.get("train_runtime", 0.0), 1),
        "first": summary(trainer.state.log_history[:20]),
        "last": summary(trainer.state.log_history[-21:]),
    }


def summary(history: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Means of the rewards, the divergence and the tag loss over some records."""
    wanted = ("reward", "kl", "entropy", "tag", "tag_accuracy", "completions/mean_length")
    values: dict[str, list[float]] = {}
    for record in history:
        for name, value in record.items():
            short = name.removeprefix("rewards/").removesuffix("/mean")
            if isinstance(value, float) and (name in wanted or name.endswith("/mean")):
                values.setdefault(short, []).append(value)
    return {name: round(sum(v) / len(v), 4) for name, v in values.items()}


@contextmanager
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
