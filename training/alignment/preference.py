"""Direct Preference Optimization on the model's own samples: the baseline to GRPO.

For a query the service's engine draws some rewrites, the rewards of :mod:`training.rewards` rank
them, and the best and the worst become a pair. DPO (arXiv 2305.18290) then minimises

    -log sigmoid(beta * ((log p(best) - log r(best)) - (log p(worst) - log r(worst))))

with ``p`` the model and ``r`` the model at the start of the stage. A completion's tag is part of
it.

This loss only asks for the best to be more likely than the worst. A model can also reach this by
writing neither, and then writes unseen text. So the stage may add ``anchor`` times the mean
negative log probability of the best completion's tokens (arXiv 2404.19733), where it is tagged
relevant.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import Trainer, TrainingArguments

from training.alignment.feedback import Feedback, Sample
from training.alignment.likelihood import log_probs
from training.errors import DataError
from training.finetuning.model import Trainee
from training.finetuning.stages import Journal, last_checkpoint, shared_arguments
from training.recipe import DpoStage


@dataclass(frozen=True, slots=True)
class Preference:
    """Two completions of one prompt, as token ids with their tags."""

    query: str
    best: tuple[int, ...]
    worst: tuple[int, ...]
    margin: float
    """Fused reward of the best minus that of the worst."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """One completion of the engine."""

    text: str
    ids: tuple[int, ...]
    """With the tag."""
    tag: bool


def prefer(
    feedback: Feedback,
    drawn: Iterable[tuple[str, Sequence[Drawn]]],
    stage: DpoStage,
) -> list[Preference]:
    """The best and the worst sample of each query, if their rewards differ by enough."""
    found = []
    for query, samples in drawn:
        group = [Sample(one.text, one.tag) for one in samples]
        rewards = [r.fused(stage.rewards) for r in feedback.reward(query, group)]
        if not rewards:
            continue
        best = max(range(len(rewards)), key=rewards.__getitem__)
        worst = min(range(len(rewards)), key=rewards.__getitem__)
        margin = rewards[best] - rewards[worst]
        if margin >= stage.min_margin:
            found.append(Preference(query, samples[best].ids, samples[worst].ids, margin))
    return found


def save(preferences: Sequence[Preference], path: Path) -> None:
    """Write pairs as JSON, whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps([asdict(p) for p in preferences]) + "\n", encoding="utf-8")
    partial.replace(path)


def load(path: Path) -> list[Preference]:
    """Read the file of :func:`save`."""
    return [
        Preference(p["query"], tuple(p["best"]), tuple(p["worst"]), p["margin"])
        for p in json.loads(path.read_text(encoding="utf-8"))
    ]


def dpo_loss(
    best: torch.Tensor,
    worst: torch.Tensor,
    reference_best: torch.Tensor,
    reference_worst: torch.Tensor,
    beta: float,
) -> torch.Tensor:
    """Mean loss over pairs, of log probabilities of whole completions (shape: pairs)."""
    margin = (best - reference_best) - (worst - reference_worst)
    return -functional.logsigmoid(beta * margin).mean()


def anchor_loss(best: torch.Tensor, lengths: torch.Tensor, shown: torch.Tensor) -> torch.Tensor:
    """Mean negative log probability per token of the best completions; 0 if none is shown.

    Args:
        best: log probabilities of whole completions (shape: pairs).
        lengths: their tokens (pairs).
        shown: whether each is tagged relevant (pairs, bool).
    """
    tokens = lengths[shown].sum()
    return -best[shown].sum() / tokens.clamp(min=1)


class _DpoTrainer(Trainer):
    """Batches of preferences with their reference log probabilities."""

    def __init__(self, *, trainee: Trainee, beta: float, anchor: float, **kwargs: Any) -> None:
        super().__init__(model=trainee.model, **kwargs)
        self._trainee, self._beta, self._anchor = trainee, beta, anchor

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,  # noqa: ARG002 - the base class passes both by name
        num_items_in_batch: Any = None,  # noqa: ARG002
    ) -> torch.Tensor:
        """See :func:`dpo_loss` and :func:`anchor_loss`."""
        base = self.accelerator.unwrap_model(model).get_base_model()
        preferences: list[Preference] = [item[0] for item in inputs["pairs"]]
        best, worst = _totals(base, self._trainee, preferences)
        reference = torch.tensor([item[1] for item in inputs["pairs"]], device=best.device)
        loss = dpo_loss(best, worst, reference[:, 0], reference[:, 1], self._beta)
        if not self._anchor:
            return loss
        relevant = self._trainee.prompts.labels.relevant
        shown = torch.tensor([p.best[-1] == relevant for p in preferences], device=best.device)
        lengths = torch.tensor([len(p.best) for p in preferences], device=best.device)
        return loss + self._anchor * anchor_loss(best, lengths, shown)


def _totals(
    base: Any, trainee: Trainee, preferences: Sequence[Preference]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log probabilities of the best and of the worst completion of each pair."""
    prompts = [trainee.prompts.rewrite_prompt(p.query) for p in preferences]
    completions = [p.best for p in preferences] + [p.worst for p in preferences]
    chosen, _ = log_probs(
        base, prompts + prompts, completions, pad_id=trainee.pad_id, temperature=1.0
    )
    best, worst = chosen.sum(1).chunk(2)
    return best, worst


def align_by_preference(
    trainee: Trainee,
    preferences: Sequence[Preference],
    stage: DpoStage,
    *,
    run: Path,
    number: int,
    seed: int,
    checkpoint_every: int,
) -> dict[str, Any]:
    """Train one DPO stage; continues from its newest whole checkpoint if there is one.

    Returns:
        steps, pairs, seconds and the last loss.

    Raises:
        DataError: no two samples of a query differ by enough.
    """
    if not preferences:
        raise DataError(
            f"stage {number} has no pair of samples whose rewards differ by {stage.min_margin} "
            "(min_margin); sample more queries, or more for each"
        )
    reference = _reference(trainee, preferences, stage.batch)
    arguments = TrainingArguments(
        **shared_arguments(
            run / f"stage-{number}",
            seed=seed,
            checkpoint_every=checkpoint_every,
            bf16=trainee.bf16,
        ),
        per_device_train_batch_size=stage.batch,
        num_train_epochs=stage.epochs,
        learning_rate=stage.learning_rate,
        weight_decay=0.0,
        logging_steps=5,
    )
    trainer = _DpoTrainer(
        trainee=trainee,
        beta=stage.beta,
        anchor=stage.anchor,
        args=arguments,
        train_dataset=list(zip(preferences, reference, strict=True)),
        data_collator=lambda items: {"pairs": items},
        callbacks=[Journal(run / "figures.jsonl", number)],
    )
    checkpoint = last_checkpoint(run / f"stage-{number}")
    result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return {
        "steps": result.global_step,
        "pairs": len(preferences),
        "margin": round(sum(p.margin for p in preferences) / len(preferences), 4),
        "seconds": round(result.metrics.get("train_runtime", 0.0), 1),
        "loss": round(result.training_loss, 4),
    }


@torch.no_grad()
def _reference(
    trainee: Trainee, preferences: Sequence[Preference], batch: int
) -> list[tuple[float, float]]:
    """Log probabilities by the model as it is, before a checkpoint is taken up."""
    base = trainee.model.get_base_model()
    found: list[tuple[float, float]] = []
    for start in range(0, len(preferences), batch):
        device = next(base.parameters()).device.type
        with torch.autocast(device, torch.bfloat16, enabled=trainee.bf16):
            best, worst = _totals(base, trainee, preferences[start : start + batch])
        found += zip(best.tolist(), worst.tolist(), strict=True)
    return found
