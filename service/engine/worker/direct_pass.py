"""Runs inside the engine core: calls the kernels of a small Llama on a CPU directly.

A step of a model with 135 million parameters spends nearly as much time in Python as in kernels:
each of its 30 layers is a dozen modules, and each module looks up its configuration and metadata
again. Here the same kernels are called one after the other, with arguments looked up once. Norms
and activations use vLLM's kernels, where its modules for CPUs fall back on chains of torch's
operations.

Other models are left alone, and the first pass is computed both ways.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from service.engine.worker.errors import LayoutChanged, NotApplicable
from service.engine.worker.shared_rows import Rows, SharedForward, attention_layers, close


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
            NotApplicable: it is divided among devices.
            LayoutChanged: it is not multiplied by the kernel.
        """
        if getattr(module, "tp_size", 1) != 1:
            raise NotApplicable("a matrix is divided among devices")
        multiply = getattr(module, "cpu_linear", None)
        if multiply is None:
            raise LayoutChanged("a matrix is not multiplied by vLLM's kernel for CPUs")
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
            NotApplicable: it has no weight, or covers a part of its columns.
            LayoutChanged: it is of another class.
        """
        _named(module, "RMSNorm")
        if not module.has_weight or module.variance_size_override is not None:
            raise NotApplicable("a norm has no weight, or covers a part of its columns")
        return cls(module.weight.data, module.variance_epsilon)


@dataclass(slots=True)
class Layer:
    """The parts of a decoder layer."""

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
            NotApplicable: its attention, or the cache, is of another kind.
            LayoutChanged: it has parts of other classes.
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
            raise NotApplicable("attention has sinks or slopes, or a library of its own")
        if impl.kv_cache_dtype != "auto" or attention.query_quant is not None:
            raise NotApplicable("keys and values are quantised")
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
        own: the model's own pass.
        rows: of the pass that is running.
        kernels: vLLM's operators (``torch.ops._C``).
        context: vLLM's ``get_forward_context``.

    Raises:
        NotApplicable: the model is no plain Llama on one CPU.
        LayoutChanged: its layers have other parts than expected.
    """

    def __init__(
        self,
        model: Any,
        own: Callable[..., Any],
        rows: Rows,
        kernels: Any,
        context: Callable[[], Any],
    ) -> None:
        name = type(model).__name__
        if name != "LlamaForCausalLM":
            raise NotApplicable(f"{name} is not known here, only LlamaForCausalLM")
        inner = model.model
        if inner.embed_tokens.weight.device.type != "cpu":
            raise NotApplicable("the kernels are those of CPUs")
        self._embed = inner.embed_tokens
        if getattr(self._embed, "tp_size", 1) != 1:
            raise NotApplicable("the model is divided among devices")
        self._layers = [Layer.of(each, self._embed.weight.dtype) for each in inner.layers]
        if len(self._layers) != len(attention_layers(model)):
            raise NotApplicable("the model has further attention layers")
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
        self.tried = False
        """Whether a batch has been computed both ways."""
        self.refused = ""
        """Why the model's own pass is used after all."""

    def __call__(self, input_ids: Any = None, positions: Any = None, **others: Any) -> Any:
        """Hidden states (rows, hidden size)."""
        if self.refused or any(value is not None for value in others.values()):
            return self._own(input_ids=input_ids, positions=positions, **others)
        if not self.tried:
            return self._both_ways(input_ids, positions, others)
        metadata = self._context().attn_metadata
        if not isinstance(metadata, dict):
            return self._own(input_ids=input_ids, positions=positions, **others)
        return self._pass(input_ids, positions, metadata[self._name])

    def _both_ways(self, input_ids: Any, positions: Any, others: Any) -> Any:
        """The first time: compare with the model's own pass, and decide."""
        direct = None
        try:
            metadata = self._context().attn_metadata
            if isinstance(metadata, dict):
                self.tried = True
                common = metadata[self._name]
                if any(metadata[each.attention.layer_name] is not common for each in self._layers):
                    raise LayoutChanged("layers have blocks of their own")  # noqa: TRY301 - as below
                direct = self._pass(input_ids, positions, common)
        except Exception as error:  # noqa: BLE001 - whatever vLLM has changed, it serves
            self.refused = f"vLLM's kernels are others: {type(error).__name__}: {error}"
        # Last, so that its keys and values are those that stay.
        own = self._own(input_ids=input_ids, positions=positions, **others)
        if direct is not None and not close(own, direct):
            self.refused = "the model's own pass gives other numbers"
        return own

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
        """For each layer its cache, and the keys and the values in it."""
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

    def pass_directly(self) -> None:
        """From now on the kernels of the model's layers are called directly.

        :meth:`service.engine.worker.shared_rows.SharedRows.share_rows` goes first. The first batch
        is computed both ways; if they differ the model's own pass is used after all.

        Raises:
            NotApplicable: the model is no Llama on a CPU, or rows are not shared.
            LayoutChanged, AttributeError: the model has other parts; nothing has changed.
        """
        shared = self.shared_forward
        if shared is None:
            raise NotApplicable("rows are not shared")
        # Both modules are loaded, because vLLM has called this.
        kernels = sys.modules["torch"].ops._C  # noqa: SLF001 - vLLM's name for its kernels
        context = sys.modules["vllm.forward_context"].get_forward_context
        model = self.model_runner.get_model()
        self.direct_pass = DirectPass(model, shared.inner, shared.rows, kernels, context)
        shared.inner = self.direct_pass

    def direct_pass_refused(self) -> str:
        """Why passes are not direct after all; empty if they are, or never were to be."""
        direct = self.direct_pass
        if direct is None or direct.refused:
            return "" if direct is None else direct.refused
        return "" if direct.tried else "no batch has metadata of the known kind"


def _named(module: Any, name: str) -> None:
    """Refuse modules of any other class, subclasses included.

    Raises:
        LayoutChanged: the class has another name.
    """
    found = type(module).__name__
    if found != name:
        raise LayoutChanged(f"{found} is not known here, only {name}")
