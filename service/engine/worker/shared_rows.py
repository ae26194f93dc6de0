"""Runs inside the engine core: what several sequences have in common is computed once.

The candidates of a query begin alike: with the same prompt, and often with the same first words.
vLLM computes each of them for itself, since its cache of prefixes shares whole blocks of tokens and
a prompt of ours is shorter than one. Here the rows of a batch whose sequences are the same up to
and including them go through the matrices once; attention alone, which reads and fills the cache of
each sequence, gets all rows. Every sequence still draws tokens of its own.

Only what vLLM hands over is used: neither torch nor vLLM is imported.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

LEAST_SAVED = 4
"""Rows that must be saved in a step: picking rows in each layer has a cost of its own."""
_CLOSE = 0.1
_MOST = 0.75
"""How far apart two passes may be: this part of the rows by this part of their length. Matrices of
other numbers of rows are multiplied in another order, and bfloat16 rounds what comes of it: mostly
by a hundredth, and by more in the first row of a sequence, whose numbers grow to tens of
thousands on the way."""

_EMPTY = 0


@dataclass(frozen=True, slots=True)
class Sharing:
    """Which rows of a batch are computed.

    Attributes:
        kept: rows that are computed, in order.
        source: for each row of the batch, its place among those.
        requests_kept: requests whose last rows are among those.
        request_source: for each request of the batch, its place among those.
    """

    kept: Sequence[int]
    source: Sequence[int]
    requests_kept: Sequence[int]
    request_source: Sequence[int]

    @property
    def saved(self) -> int:
        """Rows that need not be computed."""
        return len(self.source) - len(self.kept)


class Histories:
    """Knows which sequences have been the same so far.

    A row has the number of its sequence up to and including it. Rows have the same number if their
    tokens are the same, and those before them were the same in all of the same steps: so equal
    numbers mean equal hidden states, keys and values, whatever else is in the batch.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count(_EMPTY + 1)
        self._known: dict[str, tuple[int, int]] = {}
        """Number and length of each sequence."""

    def share(
        self,
        names: Sequence[str],
        begins: Sequence[int],
        starts: Sequence[int],
        tokens: Sequence[int],
    ) -> Sharing:
        """What of the next step's rows to compute.

        Args:
            names: of the sequences.
            begins: for each, how many of its tokens have been computed before.
            starts: for each, where its rows begin, and at last how many there are.
            tokens: the token of each row.
        """
        rows: dict[tuple[int, int], tuple[int, int]] = {}
        """Number and place among those computed, by the number before and the token."""
        requests: dict[int, int] = {}
        known: dict[str, tuple[int, int]] = {}
        kept: list[int] = []
        source: list[int] = []
        requests_kept: list[int] = []
        request_source: list[int] = []
        for i, name in enumerate(names):
            number = self._so_far(name, begins[i])
            for row in range(starts[i], starts[i + 1]):
                key = number, tokens[row]
                found = rows.get(key)
                if found is None:
                    found = rows[key] = next(self._numbers), len(kept)
                    kept.append(row)
                number, place = found
                source.append(place)
            if number not in requests:
                requests[number] = len(requests_kept)
                requests_kept.append(i)
            request_source.append(requests[number])
            known[name] = number, begins[i] + starts[i + 1] - starts[i]
        # Of one that was not in this step nothing is remembered: it shares no more.
        self._known = known
        return Sharing(kept, source, requests_kept, request_source)

    def _so_far(self, name: str, length: int) -> int:
        if length == 0:
            return _EMPTY
        number, known = self._known.get(name, (_EMPTY, -1))
        return number if known == length else next(self._numbers)


class Rows:
    """The rows of the pass that is running, for its attention.

    Attributes:
        source: index of :attr:`Sharing.source`; ``None`` if every row is computed.
        kept: index of :attr:`Sharing.kept`.
    """

    def __init__(self) -> None:
        self.source: Any = None
        self.kept: Any = None

    def attention(self, own: Callable[..., Any]) -> Callable[..., Any]:
        """A layer's attention ``own`` for all rows of a pass of which only some are computed."""

        def attend(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
            if self.source is None:
                return own(query, key, value, *args, **kwargs)
            at = self.source
            return own(query[at], key[at], value[at], *args, **kwargs)[self.kept]

        return attend


class SharedForward:
    """A model's pass and its head, computing shared rows once.

    Args:
        runner: vLLM's model runner.
        rows: told of the rows of each pass.
        forward: the model's own.
        compute_logits: the model's own.
    """

    def __init__(
        self,
        runner: Any,
        rows: Rows,
        forward: Callable[..., Any],
        compute_logits: Callable[..., Any],
    ) -> None:
        self._runner = runner
        self.rows = rows
        self.inner = forward
        """What computes the rows that are left."""
        self._compute_logits = compute_logits
        self._histories = Histories()
        self._heads: tuple[Any, Any] | None = None
        """Requests whose logits are computed, and for each request where those are."""
        self._checked = False
        self.refused = ""
        """Why rows are not shared any more."""
        self.seen = 0
        self.saved = 0

    def forward(self, input_ids: Any = None, positions: Any = None, **others: Any) -> Any:
        """The model's pass over a batch: hidden states (rows, hidden size)."""
        self._heads = None
        sharing = None
        if not self.refused and all(value is None for value in others.values()):
            sharing = self._sharing(input_ids, positions)
        if sharing is None:
            return self.inner(input_ids=input_ids, positions=positions, **others)
        if not self._checked:
            return self._both_ways(sharing, input_ids, positions, others)
        return self._shared(sharing, input_ids, positions, others)

    def compute_logits(self, hidden: Any, *args: Any, **kwargs: Any) -> Any:
        """Logits (requests, vocabulary) of the hidden states (requests, hidden size)."""
        if self._heads is None or hidden.shape[0] != len(self._heads[1]):
            return self._compute_logits(hidden, *args, **kwargs)
        kept, source = self._heads
        logits = self._compute_logits(hidden[kept], *args, **kwargs)
        return None if logits is None else logits[source]

    def _sharing(self, input_ids: Any, positions: Any) -> Sharing | None:
        batch = self._runner.input_batch
        count = batch.num_reqs
        starts = self._runner.query_start_loc.np[: count + 1].tolist()
        # vLLM measures its memory with rows that belong to no request.
        if not count or positions.ndim != 1 or starts[-1] != len(input_ids):
            return None
        begins = batch.num_computed_tokens_cpu[:count].tolist()
        sharing = self._histories.share(batch.req_ids[:count], begins, starts, input_ids.tolist())
        self.seen += len(input_ids)
        if sharing.saved < LEAST_SAVED:
            return None
        self.saved += sharing.saved
        return sharing

    def _shared(self, sharing: Sharing, input_ids: Any, positions: Any, others: Any) -> Any:
        rows = self.rows
        kept, source = positions.new_tensor(sharing.kept), positions.new_tensor(sharing.source)
        rows.kept, rows.source = kept, source
        try:
            hidden = self.inner(input_ids=input_ids[kept], positions=positions[kept], **others)
        finally:
            rows.kept = rows.source = None
        if len(sharing.requests_kept) < len(sharing.request_source):
            self._heads = (
                positions.new_tensor(sharing.requests_kept),
                positions.new_tensor(sharing.request_source),
            )
        return hidden[source]

    def _both_ways(self, sharing: Sharing, input_ids: Any, positions: Any, others: Any) -> Any:
        """The first time: compare with the model's own pass, and decide."""
        own = self.inner(input_ids=input_ids, positions=positions, **others).clone()
        shared = self._shared(sharing, input_ids, positions, others)
        self._checked = True
        if close(own, shared):
            return shared
        self.refused = "the model's rows depend on each other by more than attention"
        self._heads = None
        # So that keys and values are those of the model's own pass again.
        return self.inner(input_ids=input_ids, positions=positions, **others)


def close(own: Any, other: Any) -> bool:
    """Whether two passes gave the same hidden states, but for rounding."""
    if own.shape != other.shape:
        return False
    own, other = own.float(), other.float()
    apart = (own - other).norm(dim=-1) / own.norm(dim=-1).clamp(min=1e-6)
    return bool(apart.sort().values[int(_MOST * (len(apart) - 1))] <= _CLOSE)


class SharedRows:
    """Mixed into vLLM's worker by its option ``worker_extension_cls``."""

    model_runner: Any
    """The worker's own."""
    shared_forward: SharedForward | None = None

    def share_rows(self) -> str:
        """From now on rows that several sequences have in common are computed once.

        For models that run as they are written: a compiled or recorded pass has its shapes from
        elsewhere.

        Returns:
            Why not, if that is not known to be right here; then all is left as it is. Empty if it
            was done: the first batch with such rows is computed both ways, and if they differ
            nothing is shared after all (:meth:`rows_shared`).
        """
        runner = self.model_runner
        model = runner.get_model()
        config = runner.vllm_config
        if not config.model_config.enforce_eager:
            return "the model is compiled"
        if runner.lora_config or runner.speculative_config or runner.uses_mrope:
            return "adapters, speculation and positions of several dimensions are not known here"
        layers = attention_layers(model)
        if not layers or len(layers) != len(config.compilation_config.static_forward_context):
            return "the model keeps more than keys and values"
        rows = Rows()
        for layer in layers:
            layer.forward = rows.attention(layer.forward)
        shared = SharedForward(runner, rows, model.forward, model.compute_logits)
        model.forward, model.compute_logits = shared.forward, shared.compute_logits
        self.shared_forward = shared
        return ""

    def rows_shared(self) -> tuple[int, int, str]:
        """Rows of all batches so far, those that were not computed, and why none are any more."""
        shared = self.shared_forward
        return (0, 0, "") if shared is None else (shared.seen, shared.saved, shared.refused)


def attention_layers(model: Any) -> list[Any]:
    """A model's layers of attention, which are what keeps keys and values."""
    return [m for m in model.modules() if hasattr(m, "kv_cache") and hasattr(m, "impl")]
