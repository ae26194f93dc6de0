"""Runs inside the engine core: computes common prefixes of several sequences once.

The candidates of a query begin with the same prompt, and often with the same first words. vLLM
computes each candidate by itself, because its prefix cache shares whole blocks of tokens and our
prompts are shorter than a block. Here rows of a batch whose sequences are equal up to and including
them go through the matrices once; only attention, which reads and fills the cache of each sequence,
gets all rows. Every sequence still draws its own tokens.

Only objects that vLLM hands over are used: neither torch nor vLLM is imported.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from service.engine.worker.errors import LayoutChanged, NotApplicable

LEAST_SAVED = 4
"""Rows that a step must save: picking rows in each layer has its own cost."""
_CLOSE = 0.1
_MOST = 0.75
"""Two passes are close if this share (``_MOST``) of the rows differ by at most ``_CLOSE`` of their
length. Products with another number of rows sum in another order, and bfloat16 rounds the sums:
mostly by a hundredth, and by more in the first row of a sequence, whose numbers grow to tens of
thousands in between."""

_EMPTY = 0


@dataclass(frozen=True, slots=True)
class Sharing:
    """Which rows of a batch are computed.

    Attributes:
        kept: rows that are computed, in order.
        source: for each row of the batch, its place among those.
        requests_kept: requests whose last rows are among those.
        request_source: for each request of the batch, its place among those.
        continued: whether a sequence of the batch had rows in an earlier one.
    """

    kept: Sequence[int]
    source: Sequence[int]
    requests_kept: Sequence[int]
    request_source: Sequence[int]
    continued: bool = field(default=False, compare=False)

    @property
    def saved(self) -> int:
        """Rows that need not be computed."""
        return len(self.source) - len(self.kept)


class Histories:
    """Tells which sequences have been equal so far.

    A row has the number of its sequence up to and including it. Rows have equal numbers if their
    tokens are equal and their prefixes were equal in the same steps: so equal numbers mean equal
    hidden states, keys and values, whatever else is in the batch.
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
        """Which rows of the next step to compute.

        Args:
            names: of the sequences.
            begins: for each sequence, how many of its tokens have been computed before.
            starts: for each sequence, its first row; then the number of rows.
            tokens: the token of each row.
        """
        rows: dict[tuple[int, int], tuple[int, int]] = {}
        """Number and place among the computed rows, by the number before and the token."""
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
        # A sequence that was not in this step is forgotten: it shares no more.
        self._known = known
        return Sharing(kept, source, requests_kept, request_source, any(begins))

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
        """A layer's attention ``own`` for all rows of a pass that computes only some."""

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
        rows: set for each pass.
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
        """Computes the rows that are left."""
        self._compute_logits = compute_logits
        self._histories = Histories()
        self._heads: tuple[Any, Any] | None = None
        """Requests whose logits are computed, and for each request its place among them."""
        self._heads_tried = False
        self.tried: set[bool] = set()
        """:attr:`Sharing.continued` of the batches that have been computed both ways."""
        self.refused = ""
        """Why rows are not shared any more."""
        self.seen = 0
        self.saved = 0

    def forward(self, input_ids: Any = None, positions: Any = None, **others: Any) -> Any:
        """The model's pass over a batch: hidden states (rows, hidden size)."""
        self._heads = None
        sharing = None
        if not self.refused and all(value is None for value in others.values()):
            try:
                sharing = self._sharing(input_ids, positions)
            except Exception as error:  # noqa: BLE001 - whatever vLLM has changed, it serves
                self.refused = f"the runner's batch has changed: {type(error).__name__}: {error}"
        if sharing is None:
            return self.inner(input_ids=input_ids, positions=positions, **others)
        if sharing.continued not in self.tried:
            return self._both_ways(sharing, input_ids, positions, others)
        return self._shared(sharing, input_ids, positions, others)

    def compute_logits(self, hidden: Any, *args: Any, **kwargs: Any) -> Any:
        """Logits (requests, vocabulary) of the hidden states (requests, hidden size)."""
        if self._heads is None or hidden.shape[0] != len(self._heads[1]):
            return self._compute_logits(hidden, *args, **kwargs)
        kept, source = self._heads
        few = hidden[kept]
        if not self._heads_tried:
            self._heads_tried = True
            if not bool((few[source] == hidden).all()):
                self.refused = "the head gets other rows than the last of each request"
                return self._compute_logits(hidden, *args, **kwargs)
        logits = self._compute_logits(few, *args, **kwargs)
        return None if logits is None else logits[source]

    def _sharing(self, input_ids: Any, positions: Any) -> Sharing | None:
        batch = self._runner.input_batch
        count = batch.num_reqs
        starts = self._runner.query_start_loc.np[: count + 1].tolist()
        # vLLM measures its memory with rows that belong to no request.
        if not count or positions.ndim != 1 or starts[-1] != len(input_ids):
            return None
        places = positions.tolist()
        begins = [places[start] for start in starts[:-1]]
        for begin, start, end in zip(begins, starts, starts[1:], strict=False):
            if places[end - 1] - begin != end - 1 - start:
                raise LayoutChanged("rows of a request do not follow each other")
        names = batch.req_ids[:count]
        if len(set(names)) != count:
            raise LayoutChanged("a request has no name of its own")
        sharing = self._histories.share(names, begins, starts, input_ids.tolist())
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
        self.tried.add(sharing.continued)
        own = self.inner(input_ids=input_ids, positions=positions, **others).clone()
        try:
            shared = self._shared(sharing, input_ids, positions, others)
            if close(own, shared):
                return shared
            self.refused = "the model's rows depend on each other by more than attention"
        except Exception as error:  # noqa: BLE001 - whatever vLLM has changed, it serves
            self.refused = f"the pass takes no chosen rows: {type(error).__name__}: {error}"
        self._heads = None
        # Restores the keys and values of the model's own pass.
        return self.inner(input_ids=input_ids, positions=positions, **others)


def close(own: Any, other: Any) -> bool:
    """Whether two passes gave the same hidden states, except for rounding."""
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

    def share_rows(self) -> None:
        """From now on common prefixes of several sequences are computed once.

        The first batch of prompts and the first of continued sequences are computed both ways; if
        they differ nothing is shared after all (:meth:`rows_refused`).

        Raises:
            NotApplicable: sharing is not known to be right for the model; nothing has changed.
            AttributeError: the runner has other attributes; nothing has changed.
        """
        runner = self.model_runner
        model = runner.get_model()
        config = runner.vllm_config
        if not config.model_config.enforce_eager:
            # A compiled or recorded pass fixes its shapes elsewhere.
            raise NotApplicable("the model is compiled")
        if runner.lora_config or runner.speculative_config or runner.uses_mrope:
            raise NotApplicable(
                "adapters, speculation and positions of several dimensions are not supported"
            )
        layers = attention_layers(model)
        if not layers or len(layers) != len(config.compilation_config.static_forward_context):
            raise NotApplicable("the model keeps more than keys and values")
        rows = Rows()
        shared = SharedForward(runner, rows, model.forward, model.compute_logits)
        for layer in layers:
            layer.forward = rows.attention(layer.forward)
        model.forward, model.compute_logits = shared.forward, shared.compute_logits
        self.shared_forward = shared

    def rows_shared(self) -> tuple[int, int]:
        """Rows of all batches so far, and those that were not computed."""
        shared = self.shared_forward
        return (0, 0) if shared is None else (shared.seen, shared.saved)

    def rows_refused(self) -> str:
        """Why rows are not shared after all; empty if they are, or never were to be."""
        shared = self.shared_forward
        if shared is None or shared.refused:
            return "" if shared is None else shared.refused
        return "" if shared.seen else "no batch of the runner reaches the model as expected"


def attention_layers(model: Any) -> list[Any]:
    """A model's attention layers: those that keep keys and values."""
    return [m for m in model.modules() if hasattr(m, "kv_cache") and hasattr(m, "impl")]
