"""Runs inside the engine core: log probabilities of the two labels without those of the vocabulary.

A tag is the difference of two logits (:func:`service.engine.scoring.label_probability`), so nothing
that is the same for both matters: not the sum over the vocabulary that makes log probabilities of
logits, and not the rank of the token that was drawn. vLLM's sampler computes both at every step for
every sequence, which on a CPU costs more than drawing the token does.

Only what vLLM hands over is used: neither torch nor vLLM is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

Gather = Callable[[Any, Mapping[int, Sequence[int]], Any], Any]
"""The sampler's ``gather_specific_token_logprobs``: log probabilities (rows, vocabulary), token ids
by row, and the tokens drawn (rows,), to vLLM's tensors of log probabilities."""


def label_columns(ids: Sequence[int]) -> Callable[[Any], Any]:
    """What takes the place of the log probabilities (rows, vocabulary): the labels' logits.

    Args:
        ids: of the labels, in the order in which every request asks for them.

    Returns:
        A function from float32 logits (rows, vocabulary) to a copy of (rows, labels): the sampler
        goes on to divide the logits by the temperatures in place.
    """

    def columns(logits: Any) -> Any:
        found = logits.new_empty((logits.shape[0], len(ids)))
        for place, token in enumerate(ids):
            found[:, place] = logits[:, token]
        return found

    return columns


def gather_labels(gather: Gather, ids: Sequence[int]) -> Gather:
    """``gather`` for what :func:`label_columns` leaves of the vocabulary.

    What it reports for the token that was drawn is the first label's logit, with a rank among the
    labels: nobody reads it.
    """
    places = list(range(len(ids)))

    def gathered(columns: Any, asked: Mapping[int, Sequence[int]], drawn: Any) -> Any:
        found = gather(columns, dict.fromkeys(asked, places), drawn.new_zeros(drawn.shape))
        if found is None:
            return None
        tokens = found.logprob_token_ids.clone()
        tokens[:, 0] = drawn
        for place, token in enumerate(ids):
            tokens[:, place + 1] = token
        return found._replace(logprob_token_ids=tokens)

    return gathered


class LabelLogits:
    """Mixed into vLLM's worker by its option ``worker_extension_cls``."""

    model_runner: Any
    """The worker's own."""

    def report_labels_alone(self, ids: list[int]) -> str:
        """From now on log probabilities are logits, and only of these tokens.

        Every request must ask for just these, by ``logprob_token_ids``, in this order.

        Args:
            ids: of the two labels.

        Returns:
            Why not, if the sampler is not one that is known here; then all is left as it is. Empty
            if it was done.
        """
        sampler: Any = getattr(self.model_runner, "sampler", None)
        gather = getattr(sampler, "gather_specific_token_logprobs", None)
        if gather is None or not hasattr(sampler, "compute_logprobs"):
            return "vLLM's sampler is not of the kind that is known here"
        sampler.compute_logprobs = label_columns(ids)
        sampler.gather_specific_token_logprobs = gather_labels(gather, ids)
        return ""
