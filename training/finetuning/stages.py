"""The trainable stages: one optimisation of the adapter over packed rows."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from transformers import Trainer, TrainerCallback, TrainingArguments

from training.data.packing import Collator, Row, hidden_states
from training.errors import DataError
from training.finetuning.model import Trainee
from training.recipe import Optimiser


class OnePassTrainer(Trainer):
    """Two losses in one pass: the tokens of rewrites, and the tag over the two labels alone.

    The head runs only where something is predicted; a judged pair needs two rows of it.
    """

    def __init__(self, *args: Any, labels: Sequence[int], tag_weight: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._labels = list(labels)
        self._tag_weight = tag_weight
        self._sums: dict[str, list[float]] = {"write": [], "tag": [], "tag_accuracy": []}

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,  # noqa: ARG002 - the base class passes both by name
        num_items_in_batch: Any = None,  # noqa: ARG002
    ) -> torch.Tensor:
        """Mean token loss of rewrites + ``tag_weight`` x mean two-label loss of tags."""
        base = self.accelerator.unwrap_model(model).get_base_model()
        hidden = hidden_states(base, inputs)
        loss: torch.Tensor = hidden.new_zeros((), dtype=torch.float32)
        if inputs["target"].numel():
            logits = base.lm_head(hidden[inputs["source"]]).float()
            write = functional.cross_entropy(logits, inputs["target"])
            self._sums["write"].append(write.item())
            loss = loss + write
        if inputs["tag"].numel() and self._tag_weight:
            # Index 1 is RELEVANT, as in the tag tensor.
            rows = base.lm_head(hidden[inputs["tag_source"]])[:, self._labels].float()
            tag = functional.cross_entropy(rows, inputs["tag"])
            self._sums["tag"].append(tag.item())
            self._sums["tag_accuracy"].append(
                (rows.argmax(-1) == inputs["tag"]).float().mean().item()
            )
            loss = loss + self._tag_weight * tag
        return loss

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add the mean of each loss since the last record."""
        for name, values in self._sums.items():
            if values:
                logs[name] = math.fsum(values) / len(values)
                values.clear()
        super().log(logs, *args, **kwargs)


class Journal(TrainerCallback):
    """Appends every logged figure to ``figures.jsonl`` of the run."""

    def __init__(self, path: Path, stage: int) -> None:
        self._path, self._stage = path, stage

    def on_log(self, _args: Any, state: Any, _control: Any, logs: Any = None, **_: Any) -> None:
        """Write one line: stage, step and the figures."""
        line = {"stage": self._stage, "step": state.global_step, **(logs or {})}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def shared_arguments(
    folder: Path, *, seed: int, checkpoint_every: int, bf16: bool = True
) -> dict[str, Any]:
    """Arguments of :class:`transformers.TrainingArguments` that all trainers share.

    Args:
        folder: for checkpoints.
        seed: of the run and of the order of the data.
        checkpoint_every: steps between checkpoints.
        bf16: compute in bfloat16, else in float32.
    """
    cpu = not torch.cuda.is_available()
    return {
        "output_dir": str(folder),
        "lr_scheduler_type": "linear",
        "bf16": bf16,
        "use_cpu": cpu,
        "seed": seed,
        "data_seed": seed,
        "save_steps": checkpoint_every,
        "save_total_limit": 2,
        "report_to": [],
        "remove_unused_columns": False,
        "dataloader_pin_memory": not cpu,
    }


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint of a stage; those that a kill cut short are passed over.

    The trainer writes a checkpoint's ``trainer_state.json`` last.
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    for path in reversed(found):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        return path
    return None


def optimise(
    trainee: Trainee,
    rows: Sequence[Row],
    optimiser: Optimiser,
    *,
    run: Path,
    stage: int,
    seed: int,
    checkpoint_every: int,
) -> dict[str, Any]:
    """Train one stage; continues from its newest whole checkpoint if there is one.

    Returns:
        steps, tokens, seconds and the last figures.

    Raises:
        DataError: there is nothing to learn from.
    """
    if not rows:
        raise DataError(
            f"stage {stage} has nothing to learn from: no pairs were mined, or none fits into "
            f"{optimiser.row_tokens} tokens (row_tokens)"
        )
    folder = run / f"stage-{stage}"
    labels = trainee.prompts.labels
    steps = math.ceil(len(rows) / optimiser.rows)
    arguments = TrainingArguments(
        **shared_arguments(folder, seed=seed, checkpoint_every=checkpoint_every, bf16=trainee.bf16),
        per_device_train_batch_size=optimiser.rows,
        max_steps=steps,
        learning_rate=optimiser.learning_rate,
        warmup_steps=max(1, round(optimiser.warmup * steps)),
        weight_decay=0.0,
        logging_steps=10,
        label_names=["target"],
    )
    trainer = OnePassTrainer(
        model=trainee.model,
        args=arguments,
        train_dataset=list(rows),
        data_collator=Collator(trainee.pad_id),
        callbacks=[Journal(run / "figures.jsonl", stage)],
        labels=[labels.irrelevant, labels.relevant],
        tag_weight=optimiser.tag_weight,
    )
    checkpoint = last_checkpoint(folder)
    result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    figures = [entry for entry in trainer.state.log_history if "write" in entry or "tag" in entry]
    return {
        "steps": result.global_step,
        "rows": len(rows),
        "tokens": sum(len(r.ids) for r in rows),
        "seconds": round(result.metrics.get("train_runtime", 0.0), 1),
        "last": {k: round(v, 4) for k, v in figures[-1].items()} if figures else {},
    }
