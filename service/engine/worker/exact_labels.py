"""Runs inside the engine core: computes the two labels' logits in float32.

A model served in bfloat16 gives its logits in bfloat16, whose numbers are 1/8 apart between 16
and 32. The same sequence in a batch of another shape can round to the next of them, which moves a
relevance of 0.5 by 0.03. The sampler works in float32 anyway; so the two columns of a relevance are
computed once more from the hidden states, in float32, and the other 49,000 are left as they are.

Only methods of the tensors that vLLM hands over are used: neither torch nor vLLM is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from service.engine.worker.errors import NotApplicable

ComputeLogits = Callable[..., Any]
"""A model's ``compute_logits``: hidden states (rows, hidden size) to logits (rows, vocabulary), or
``None`` where another process has them."""

_RELATIVE = 2**-5
_ABSOLUTE = 1e-3
"""How far from the model's own logits the exact ones may be: bfloat16 has eight bits, so that
rounding of inputs, sums and outputs stays well below one part in 32. A scale, a cap or a bias that
was missed does not."""


@dataclass(frozen=True, slots=True)
class LabelHead:
    """Computes the logits of a few tokens from hidden states.

    Attributes:
        ids: of the tokens.
        rows: their rows of the output weights, float32, (tokens, hidden size).
        bias: their biases, float32, (tokens,); ``None`` for none.
        soft_cap: logits are ``soft_cap * tanh(logit / soft_cap)``; ``None`` for none.
        scale: factor of the logits, after the cap.
    """

    ids: tuple[int, ...]
    rows: Any
    bias: Any = None
    soft_cap: float | None = None
    scale: float = 1.0

    @classmethod
    def of(cls, model: Any, ids: Sequence[int]) -> LabelHead:
        """The head of a vLLM model for text.

        Raises:
            NotApplicable: it has no head, a divided one, or one that is not plain numbers.
        """
        head, processor = getattr(model, "lm_head", None), getattr(model, "logits_processor", None)
        weight = getattr(head, "weight", None)
        if processor is None or weight is None:
            raise NotApplicable("the model has no lm_head and logits_processor of the usual kind")
        if getattr(head, "tp_size", 1) != 1:
            raise NotApplicable("the vocabulary is divided among several devices")
        if weight.ndim != 2 or not weight.is_floating_point() or weight.shape[0] <= max(ids):
            raise NotApplicable("the output weights are quantised or packed")
        picked = list(ids)
        bias = getattr(head, "bias", None)
        return cls(
            ids=tuple(ids),
            rows=weight.detach()[picked].float(),
            bias=None if bias is None else bias.detach()[picked].float(),
            soft_cap=getattr(processor, "soft_cap", None),
            scale=getattr(processor, "scale", 1.0),
        )

    def __call__(self, hidden: Any) -> Any:
        """Logits in float32, (..., tokens), of hidden states (..., hidden size)."""
        # Not a matrix product: those may be set to compute in less than float32.
        logits = (hidden.float().unsqueeze(-2) * self.rows).sum(-1)
        if self.bias is not None:
            logits = logits + self.bias
        if self.soft_cap is not None:
            logits = (logits / self.soft_cap).tanh() * self.soft_cap
        return logits * self.scale


def with_exact_labels(compute_logits: ComputeLogits, head: LabelHead) -> ComputeLogits:
    """``compute_logits`` with float32 logits, of which those of ``head``'s tokens are exact."""

    def exact(hidden: Any, *args: Any, **kwargs: Any) -> Any:
        logits = compute_logits(hidden, *args, **kwargs)
        if logits is None:
            return None
        logits = logits.float()
        found = head(hidden)
        # One by one: a list of indices would be sent to the device again at every step.
        for column, token in enumerate(head.ids):
            logits[..., token] = found[..., column]
        return logits

    return exact


def agree(compute_logits: ComputeLogits, head: LabelHead, hidden: Any) -> bool:
    """Whether the model's own logits are those of ``head``, rounded.

    Args:
        compute_logits: the model's.
        head: of the labels.
        hidden: states to try it with, (rows, hidden size), in the model's own precision.
    """
    logits = compute_logits(hidden)
    if logits is None:
        return False
    own = logits[:, list(head.ids)].float()
    exact = head(hidden)
    room = exact.abs().amax(-1, keepdim=True) * _RELATIVE + _ABSOLUTE
    return bool(((own - exact).abs() <= room).all())


class ExactLabels:
    """Mixed into vLLM's worker by its option ``worker_extension_cls``."""

    model_runner: Any
    """The worker's own."""

    def compute_labels_exactly(self, ids: list[int]) -> None:
        """From now on, logits of these tokens are exact.

        Args:
            ids: of the two labels.

        Raises:
            NotApplicable: the model computes its logits in another way; nothing has changed.
        """
        model = self.model_runner.get_model()
        head = LabelHead.of(model, ids)
        # The labels' own rows, to which their logits respond, and zeros, which show a bias.
        states = model.lm_head.weight.detach()[[*ids, ids[0]]].clone()
        states[-1] = 0
        if not agree(model.compute_logits, head, states):
            raise NotApplicable("the model changes its logits in a way of its own")
        model.compute_logits = with_exact_labels(model.compute_logits, head)
