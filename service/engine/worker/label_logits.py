"""Runs inside the engine core: reports the two labels' logits instead of log probabilities.

A tag is the difference of two logits (:func:`service.engine.scoring.label_probability`). The sum
over the vocabulary, which turns logits into log probabilities, cancels out, and nothing reads the
rank of the drawn token. vLLM's sampler computes both at every step for every sequence, which costs
a CPU more than drawing the token.

Neither torch nor vLLM is imported: vLLM has loaded torch before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from service.engine.worker.errors import LayoutChanged

Gather = Callable[[Any, Mapping[int, Sequence[int]], Any], Any]
"""The sampler's ``gather_specific_token_logprobs``: log probabilities (rows, vocabulary), token ids
by row, and the drawn tokens (rows,), to vLLM's tensors of log probabilities."""

_TRIAL_ROWS = 4
_CLOSE = 1e-3
"""Largest difference of a tag's log-odds in the trial, whose logits are between -8 and 8."""


class LabelColumns:
    """Two functions of the sampler, for the columns of the labels alone.

    Args:
        gather: the sampler's own.
        ids: of the labels, in the order in which every request asks for them.
    """

    def __init__(self, gather: Gather, ids: Sequence[int]) -> None:
        self._gather = gather
        self._ids = tuple(ids)
        self._places = list(range(len(ids)))
        self.refused = ""
        """Why log probabilities of the vocabulary are reported after all."""

    def compute(self, logits: Any) -> Any:
        """Replaces ``compute_logprobs``: logits (rows, vocabulary) to a copy of (rows, labels).

        A copy, because the sampler then divides the logits by the temperatures in place.
        """
        found = logits.new_empty((logits.shape[0], len(self._ids)))
        for place, token in enumerate(self._ids):
            found[:, place] = logits[:, token]
        return found

    def gather(self, columns: Any, asked: Mapping[int, Sequence[int]], drawn: Any) -> Any:
        """Replaces ``gather_specific_token_logprobs``.

        The drawn token's entry holds the first label's logit and a rank among the labels: nothing
        reads them.
        """
        if columns.shape[-1] != len(self._ids):
            self.refused = "the sampler computes log probabilities in another way"
            return self._gather(columns, asked, drawn)
        found = self._gather(
            columns, dict.fromkeys(asked, self._places), drawn.new_zeros(drawn.shape)
        )
        if found is None:
            return None
        tokens = found.logprob_token_ids.clone()
        tokens[:, 0] = drawn
        for place, token in enumerate(self._ids):
            tokens[:, place + 1] = token
        return found._replace(logprob_token_ids=tokens)


class LabelLogits:
    """Mixed into vLLM's worker by its option ``worker_extension_cls``."""

    model_runner: Any
    """The worker's own."""
    label_columns: LabelColumns | None = None

    def report_labels_alone(self, ids: list[int]) -> None:
        """From now on log probabilities are logits, and only of these tokens.

        Every request must ask for just these, by ``logprob_token_ids``, in this order.

        Args:
            ids: of the two labels.

        Raises:
            LayoutChanged: the sampler gives other tags than with log probabilities.
            AttributeError: the sampler has other methods.
        """
        sampler: Any = self.model_runner.sampler
        columns = LabelColumns(sampler.gather_specific_token_logprobs, ids)
        _try(sampler, columns, ids, next(self.model_runner.get_model().parameters()).device)
        sampler.compute_logprobs = columns.compute
        sampler.gather_specific_token_logprobs = columns.gather
        self.label_columns = columns

    def labels_refused(self) -> str:
        """Why log probabilities are reported after all; empty if they are not."""
        return "" if self.label_columns is None else self.label_columns.refused


def _try(sampler: Any, columns: LabelColumns, ids: Sequence[int], device: Any) -> None:
    """Compare the tags of some logits with those of the sampler's own log probabilities.

    Raises:
        LayoutChanged: they differ.
    """
    width = max(ids) + 2
    numbers = sys.modules["torch"].arange(_TRIAL_ROWS * width, device=device)
    logits = numbers.float().sin().mul(8).view(_TRIAL_ROWS, width)
    drawn = logits.argmax(-1)
    asked = {row: list(ids) for row in range(_TRIAL_ROWS)}
    own = sampler.gather_specific_token_logprobs(sampler.compute_logprobs(logits), asked, drawn)
    ours = columns.gather(columns.compute(logits), asked, drawn)
    if ours.logprob_token_ids.tolist() != own.logprob_token_ids.tolist():
        raise LayoutChanged("the sampler reports other tokens than the labels")
    apart = _log_odds(own.logprobs) - _log_odds(ours.logprobs)
    if not bool((apart.abs() <= _CLOSE).all()):
        raise LayoutChanged("the sampler gives other log probabilities")


def _log_odds(logprobs: Any) -> Any:
    return logprobs[:, 1] - logprobs[:, 2]
