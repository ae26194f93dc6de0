"""Refits the tag and leaves the writing unchanged.

A tag comes from the two labels' logits at a rewrite's end: ``z = h . (w_relevant - w_irrelevant)``
with ``h`` the hidden state there, and the relevance is ``1 / (1 + exp(-z))``. Training that
changes the writing also changes ``h``, which costs accuracy of the tags. This stage changes only
``w_irrelevant``: the model never reads this token and hardly ever ends a rewrite with it, so the
writing does not change.

1. Logistic regression on pairs of training queries, mined as those that tags are measured on, with
   a ridge penalty on the change of the row. ``h`` of training queries knows more than ``h`` of
   others, so this leaves ``z`` too large.
2. Platt scaling (Platt 1999) on pairs of development queries: ``z`` becomes ``a z + b``, so that
   of the pairs given 0.8 about 80 % are relevant. A head has no bias: ``b`` is realised along the
   mean of ``h``, which all of them have in common.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional

from training.data.packing import Collator, hidden_states, pack, tree_of
from training.data.pairs import QueryPairs
from training.errors import DataError, RunError
from training.finetuning.model import Trainee
from training.statistics import calibration_error

ROW_TOKENS = 256
ROWS = 8
_ADAPTER = "default"
_NEAR = 2**-5
"""How far, relative to their size, the model's own logits may be from ours: bfloat16 has 8 bits."""


@dataclass(frozen=True, slots=True)
class Judged:
    """Hidden states and labels of pairs.

    Attributes:
        hidden: at the ends of the rewrites, float32, (pairs, hidden size).
        labels: 1 for relevant, float32, (pairs,).
    """

    hidden: Tensor
    labels: Tensor

    def figures(self, row: Tensor) -> dict[str, float]:
        """Accuracy at 0.5, and calibration error, of the tag that ``row`` gives."""
        relevance = torch.sigmoid(self.hidden @ row)
        right = (relevance >= 0.5) == self.labels.bool()
        error = calibration_error(self.labels.bool().tolist(), relevance.tolist())
        return {
            "accuracy": round(right.float().mean().item(), 4),
            "calibration_error": round(error, 4),
        }


def refit(
    trainee: Trainee,
    learnt: Iterable[QueryPairs],
    development: Iterable[QueryPairs],
    *,
    ridge: float,
    max_tokens: int,
) -> dict[str, Any]:
    """Fit and calibrate the trainee's tag; nothing but the row of ``irrelevant`` changes.

    Args:
        trainee: the model.
        learnt: pairs of training queries.
        development: pairs of development queries.
        ridge: weight of the squared change of the row beside the mean loss of a pair.
        max_tokens: of a rewrite, its tag included; longer ones are left out.

    Returns:
        pairs, figures on the development pairs before and after, seconds.

    Raises:
        DataError: there are not both relevant and irrelevant pairs to learn from.
        RunError: input and output embeddings of the base are separate.
    """
    begun = time.monotonic()
    known = hidden_at_tags(trainee, learnt, max_tokens)
    fresh = hidden_at_tags(trainee, development, max_tokens)
    start = label_row(trainee)
    _check_head(trainee, fresh.hidden[:64], start)
    row = calibrate(fresh, fit_row(known, start, ridge))
    set_label_row(trainee, row)
    return {
        "pairs": len(known.labels),
        "development_pairs": len(fresh.labels),
        "before": fresh.figures(start),
        "after": fresh.figures(row),
        "seconds": round(time.monotonic() - begun, 1),
    }


@torch.no_grad()
def hidden_at_tags(trainee: Trainee, pairs: Iterable[QueryPairs], max_tokens: int) -> Judged:
    """Run the model over pairs to judge.

    Raises:
        DataError: there are not pairs of both kinds.
    """
    prompts = trainee.prompts
    trees = [t for p in pairs if (t := tree_of(p, prompts, max_tokens)).branches]
    rows = pack(trees, ROW_TOKENS, prompts.labels.relevant)
    # Rows of a length waste no padding on each other.
    rows.sort(key=lambda row: len(row.ids))
    base, collate = trainee.model.get_base_model(), Collator(trainee.pad_id)
    found: list[Tensor] = []
    labels: list[Tensor] = []
    was_training = trainee.model.training
    trainee.model.eval()
    for start in range(0, len(rows), ROWS):
        batch = collate(rows[start : start + ROWS])
        batch = {name: tensor.to(trainee.model.device) for name, tensor in batch.items()}
        with torch.autocast(trainee.model.device.type, torch.bfloat16, enabled=trainee.bf16):
            hidden = hidden_states(base, batch)[batch["tag_source"]]
        found.append(hidden.float().cpu())
        labels.append(batch["tag"].float().cpu())
    trainee.model.train(was_training)
    if not labels or len(torch.cat(labels).unique()) < 2:
        raise DataError("the data gives no pairs of both kinds, so tags cannot be fitted to it")
    return Judged(torch.cat(found), torch.cat(labels))


def fit_row(pairs: Judged, start: Tensor, ridge: float) -> Tensor:
    """The row w that minimises mean log(1 + exp(-+ h.w)) + ridge |w - start|^2."""
    change = torch.zeros_like(start, requires_grad=True)
    optimiser = torch.optim.LBFGS([change], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        logits = pairs.hidden @ (start + change)
        value = functional.binary_cross_entropy_with_logits(logits, pairs.labels)
        value = value + ridge * change.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return (start + change).detach()


def calibrate(pairs: Judged, row: Tensor) -> Tensor:
    """Scale and shift ``row`` to fit ``pairs``."""
    mean = pairs.hidden.mean(dim=0)
    shift = mean / mean.square().sum()
    seen = torch.stack([pairs.hidden @ row, pairs.hidden @ shift], dim=1).numpy()
    # C=inf: two numbers need no penalty.
    model = LogisticRegression(C=float("inf"), fit_intercept=False)
    model.fit(seen, pairs.labels.numpy())
    scale, offset = (float(value) for value in model.coef_[0])
    return scale * row + offset * shift


def label_row(trainee: Trainee) -> Tensor:
    """The row of ``relevant`` less that of ``irrelevant``, float32, (hidden size,).

    Raises:
        RunError: the adapter does not train them.
    """
    table, relevant, irrelevant = _rows(trainee)
    return (table[relevant] - table[irrelevant]).detach().float().cpu()


@torch.no_grad()
def set_label_row(trainee: Trainee, row: Tensor) -> None:
    """Change the row of ``irrelevant`` so that :func:`label_row` is ``row``."""
    table, relevant, irrelevant = _rows(trainee)
    table[irrelevant] = table[relevant] - row.to(table)


def _rows(trainee: Trainee) -> tuple[Tensor, int, int]:
    """The trained rows, and the indices of the labels' rows."""
    labels = trainee.prompts.labels
    for module in _trained_tokens(trainee):
        where = list(module.token_indices[_ADAPTER])
        if labels.relevant in where and labels.irrelevant in where:
            table: Tensor = module.trainable_tokens_delta[_ADAPTER]
            return table, where.index(labels.relevant), where.index(labels.irrelevant)
    raise RunError("the adapter does not train the rows of the labels, so tags cannot be fitted")


def _trained_tokens(trainee: Trainee) -> Iterator[Any]:
    for module in trainee.model.modules():
        if isinstance(module, TrainableTokensLayer) and module.tied_adapter is None:
            yield module


@torch.no_grad()
def _check_head(trainee: Trainee, hidden: Tensor, row: Tensor) -> None:
    """Check that the model's own logits agree with :func:`label_row`."""
    base: Any = trainee.model.get_base_model()
    labels = trainee.prompts.labels
    weight = base.lm_head.weight
    both = base.lm_head(hidden.to(weight))[:, [labels.relevant, labels.irrelevant]].float().cpu()
    ours = hidden @ row
    if ((both[:, 0] - both[:, 1] - ours).abs() > _NEAR * (both.abs().amax(dim=1) + 1)).any():
        raise RunError(
            "this base keeps the rows that it writes with apart from those that it reads with, and "
            "the adapter trains the latter; leave the tags stage out"
        )
