"""Runs inside the engine core: a small Llama on a CPU, without the way to its kernels.

A step of a model with 135 million parameters takes nearly as long in Python, between the kernels,
as in the kernels: each of its 30 layers is a dozen modules, and each module asks once more what it
is and where its metadata are. Here the same kernels are called one after the other, with what they
need looked up once. Norms and activations use vLLM's own kernels, where its modules for CPUs fall
back on chains of torch's operations.

What is not known is left alone (:class:`NotKnown`), and the first pass is computed both ways.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from service.engine.worker.shared_rows import Rows, SharedForward, attention_layers, close


class NotKnown(Exception):
    """The model is not made of the parts that are known here; the message says which."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """A linear layer that vLLM has handed over to its kernels for CPUs."""

    multiply: Callable[[Any, Any, Any], Any]
    weight: Any
    bias: Any

    @classmethod
    def of(cls, module: Any) -> Matrix:
        """Of vLLM's layer.

        Raises:
            NotKnown: it is quantised, or divided among devices.
        """
        multiply = getattr(module, "cpu_linear", None)
        if multiply is None or getattr(module, "tp_size", 1) != 1:
            raise NotKnown("a matrix is not multiplied by vLLM's kernel for CPUs")
        return cls(multiply, module.weight, getattr(module, "bias", None))

    def __call__(self, rows: Any) -> Any:
        """(rows, columns in) to (rows, columns out)."""
        return self.multiply(rows, self.weight, self.bias)


@dataclass(frozen=True, slots=True)
class Norm:
    """A layer of RMSNorm."""

    weight: Any
    epsilon: float

    @classmethod
    def of(cls, module: Any) -> Norm:
        """Of vLLM's layer.

        Raises:
            NotKnown: it is of another kind.
        """
        _named(module, "RMSNorm")
        if not module.has_weight or module.variance_size_override is not None:
            raise NotKnown("a norm has no weight, or covers a part of its columns")
        return cls(module.weight.data, module.variance_epsilon)


@dataclass(slots=True)
class Layer:
    """What a decoder layer is made of."""

    before: Norm
    qkv: Matrix
    out: Matrix
    between: Norm
    gate_up: Matrix
    down: Matrix
    attention: Any
    cos_sin: Any
    neox: bool

    @classmethod
    def of(cls, module: Any, dtype: Any) -> Layer:
        """Of vLLM's layer.

        Args:
            module: the layer.
            dtype: of the hidden states.

        Raises:
            NotKnown: it is of another kind.
        """
        _named(module, "LlamaDecoderLayer")
        _named(module.self_attn, "LlamaAttention")
        _named(module.mlp, "LlamaMLP")
        _named(module.mlp.act_fn, "SiluAndMul")
        rotary, attention = module.self_attn.rotary_emb, module.self_attn.attn
        _named(rotary, "RotaryEmbedding")
        _named(attention.impl, "CPUAttentionBackendImpl")
        impl = attention.impl
        if impl.sinks is not None or impl.alibi_slopes is not None or impl.use_zentorch_sdpa:
            raise NotKnown("attention has sinks or slopes, or a library of its own")
        if impl.kv_cache_dtype != "auto" or attention.query_quant is not None:
            raise NotKnown("keys and values are quantised")
        return cls(
            before=Norm.of(module.input_layernorm),
            qkv=Matrix.of(module.self_attn.qkv_proj),
            out=Matrix.of(module.self_attn.o_proj),
            between=Norm.of(module.post_attention_layernorm),
            gate_up=Matrix.of(module.mlp.gate_up_proj),
            down=Matrix.of(module.mlp.down_proj),
            attention=attention,
            cos_sin=rotary.cos_sin_cache.to(dtype),
            neox=rotary.is_neox_style,
        )


class DirectPass:
    """The pass of one model.

    Args:
        model: vLLM's, for its layers.
        own: its own pass.
        rows: of the pass that is running.
        kernels: vLLM's operators (``torch.ops._C``).
        context: vLLM's ``get_forward_context``.

    Raises:
        NotKnown: see there.
    """

    def __init__(
        self,
        model: Any,
        own: Callable[..., Any],
        rows: Rows,
        kernels: Any,
        context: Callable[[], Any],
    ) -> None:
        _named(model, "LlamaForCausalLM")
        inner = model.model
        self._embed = inner.embed_tokens
        if getattr(self._embed, "tp_size", 1) != 1:
            raise NotKnown("the model is divided among devices")
        self._layers = [Layer.of(each, self._embed.weight.dtype) for each in inner.layers]
        if len(self._layers) != len(attention_layers(model)):
            raise NotKnown("the model has other layers beside")
        self._norm = Norm.of(inner.norm)
        attention = self._layers[0].attention
        self._heads, self._kv_heads = attention.num_heads, attention.num_kv_heads
        self._size = attention.head_size
        self._name = attention.layer_name
        self._own = own
        self._rows = rows
        self._kernels = kernels
        self._context = context
        self._caches: list[tuple[Any, Any, Any]] = []
        self._checked = False
        self.refused = ""
        """Why the model's own pass is used after all."""

    def __call__(self, input_ids: Any = None, positions: Any = None, **others: Any) -> Any:
        """Hidden states (rows, hidden size)."""
        metadata = self._context().attn_metadata
        known = isinstance(metadata, dict) and all(value is None for value in others.values())
        if self.refused or not known:
            return self._own(input_ids=input_ids, positions=positions, **others)
        if self._checked:
            return self._pass(input_ids, positions, metadata[self._name])
        self._checked = True
        direct = self._tried(input_ids, positions, metadata)
        # Last, so that its keys and values are those that stay.
        own = self._own(input_ids=input_ids, positions=positions, **others)
        if direct is not None and not close(own, direct):
            self.refused = "the model's own pass gives something else"
        return own

    def _tried(self, input_ids: Any, positions: Any, metadata: Any) -> Any:
        """The first pass; ``None`` if there cannot be any."""
        common = metadata[self._name]
        if any(metadata[each.attention.layer_name] is not common for each in self._layers):
            self.refused = "layers have blocks of their own"
            return None
        try:
            return self._pass(input_ids, positions, common)
        except (AttributeError, RuntimeError, TypeError) as error:
            self.refused = f"vLLM's kernels are others: {error}"
            return None

    def _pass(self, input_ids: Any, positions: Any, metadata: Any) -> Any:
        kernels, rows = self._kernels, self._rows
        rms_norm, add_norm = kernels.rms_norm.default, kernels.fused_add_rms_norm.default
        rotate, activate = kernels.rotary_embedding.default, kernels.silu_and_mul.default
        store = kernels.cpu_attn_reshape_and_cache.default
        attend = kernels.cpu_attention_with_kv_cache.default
        heads, kv_heads, size = self._heads, self._kv_heads, self._size
        queries, keys = heads * size, kv_heads * size
        residual = self._embed(input_ids)
        hidden = residual.new_empty(residual.shape)
        first = self._layers[0].before
        rms_norm(hidden, residual, first.weight, first.epsilon)
        for number, (layer, (_, key_cache, value_cache)) in enumerate(
            zip(self._layers, self._cached(), strict=True)
        ):
            if number:
                add_norm(hidden, residual, layer.before.weight, layer.before.epsilon)
            qkv = layer.qkv(hidden)
            rotate(
                positions, qkv[:, :queries], qkv[:, queries : queries + keys],
                size, layer.cos_sin, layer.neox,
            )  # fmt: skip
            if rows.source is not None:
                qkv = qkv[rows.source]
            each = qkv.view(-1, heads + 2 * kv_heads, size)
            attention, impl = layer.attention, layer.attention.impl
            store(
                each[:, heads : heads + kv_heads], each[:, heads + kv_heads :],
                key_cache, value_cache, metadata.slot_mapping, attention.isa,
            )  # fmt: skip
            seen = qkv.new_empty((qkv.shape[0], heads, size))
            attend(
                each[:, :heads], key_cache, value_cache, seen,
                metadata.query_start_loc, metadata.seq_lens, impl.scale, metadata.causal, None,
                impl.sliding_window, metadata.block_table, impl.logits_soft_cap,
                metadata.scheduler_metadata, None, metadata.dynamic_causal,
            )  # fmt: skip
            seen = seen.view(-1, queries)
            hidden = layer.out(seen if rows.kept is None else seen[rows.kept])
            add_norm(hidden, residual, layer.between.weight, layer.between.epsilon)
            wide = layer.gate_up(hidden)
            narrow = wide.new_empty((wide.shape[0], wide.shape[1] // 2))
            activate(narrow, wide)
            hidden = layer.down(narrow)
        add_norm(hidden, residual, self._norm.weight, self._norm.epsilon)
        return hidden

    def _cached(self) -> list[tuple[Any, Any, Any]]:
        """Of each layer the cache, and the keys and the values in it."""
        caches = [layer.attention.kv_cache for layer in self._layers]
        if len(self._caches) != len(caches) or any(
            known[0] is not cache for known, cache in zip(self._caches, caches, strict=True)
        ):
            self._caches = []
            for cache in caches:
                blocks, kv_heads, block, _ = cache.shape
                flat = cache.view(blocks, kv_heads, 2 * block, -1)
                self._caches.append((cache, flat[:, :, :block], flat[:, :, block:]))
        return self._caches


class DirectPasses:
    """Mixed into vLLM's worker by its option ``worker_extension_cls``."""

    model_runner: Any
    """The worker's own."""
    shared_forward: SharedForward | None
    direct_pass: DirectPass | None = None

    def pass_directly(self) -> str:
        """From now on the model's layers are passed through directly.

        Returns:
            Why not, if the model is not one that is known here, or rows are not shared
            (:meth:`service.engine.worker.shared_rows.SharedRows.share_rows`, which goes first);
            then all
            is left as it is. Empty if it was done: the first batch is computed both ways, and if
            they differ the model's own pass is used after all.
        """
        shared = self.shared_forward
        if shared is None:
            return "rows are not shared"
        # They are loaded, since vLLM has called this.
        kernels = sys.modules["torch"].ops._C  # noqa: SLF001 - that is what vLLM calls its kernels
        context = sys.modules["vllm.forward_context"].get_forward_context
        model = self.model_runner.get_model()
        try:
            self.direct_pass = DirectPass(model, shared.inner, shared.rows, kernels, context)
        except (NotKnown, AttributeError) as reason:
            return str(reason)
        shared.inner = self.direct_pass
        return ""

    def passed_directly(self) -> str:
        """Why passes are not direct any more; empty if they are."""
        return "" if self.direct_pass is None else self.direct_pass.refused


def _named(module: Any, name: str) -> None:
    """Refuse what is of another class than is known, a subclass too.

    Raises:
        NotKnown: it is.
    """
    found = type(module).__name__
    if found != name:
        raise NotKnown(f"{found} is not known here, only {name}")
