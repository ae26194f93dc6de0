"""The shapes of the models that are measured on a GPU: sizes only, no weights.

How long a step takes does not depend on what the weights are, so models that nobody has trained for
this task are measured with random ones, and nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder of the Llama family: grouped queries, gated feed-forward, RMS norms.

    Attributes:
        name: what figures are called by.
        architecture, model_type: what transformers and vLLM call the code for it.
        hidden, layers, heads, kv_heads, head_dim, inner, vocabulary: sizes.
        tied: whether the head is the embedding.
        normed_heads: whether queries and keys are normed, head by head (Qwen3).
        rope_theta, positions: of its rotary positions.
    """

    name: str
    architecture: str
    model_type: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    vocabulary: int
    tied: bool
    normed_heads: bool
    rope_theta: float
    positions: int

    @property
    def linear_parameters(self) -> int:
        """In the matrices of all layers; these are what FP8 halves."""
        return sum(prod(shape) for name, shape in self.tensors() if is_linear(name))

    @property
    def head_parameters(self) -> int:
        """In the matrix that makes logits, tied or not."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """In all tensors."""
        return sum(prod(shape) for _, shape in self.tensors())

    @property
    def kv_values_per_token(self) -> int:
        """Keys and values that one token leaves behind, over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of each, as in a checkpoint."""
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        yield "model.embed_tokens.weight", (self.vocabulary, self.hidden)
        for number in range(self.layers):
            layer = f"model.layers.{number}."
            yield layer + "input_layernorm.weight", (self.hidden,)
            yield layer + "self_attn.q_proj.weight", (wide, self.hidden)
            yield layer + "self_attn.k_proj.weight", (narrow, self.hidden)
            yield layer + "self_attn.v_proj.weight", (narrow, self.hidden)
            yield layer + "self_attn.o_proj.weight", (self.hidden, wide)
            if self.normed_heads:
                yield layer + "self_attn.q_norm.weight", (self.head_dim,)
                yield layer + "self_attn.k_norm.weight", (self.head_dim,)
            yield layer + "post_attention_layernorm.weight", (self.hidden,)
            yield layer + "mlp.gate_proj.weight", (self.inner, self.hidden)
            yield layer + "mlp.up_proj.weight", (self.inner, self.hidden)
            yield layer + "mlp.down_proj.weight", (self.hidden, self.inner)
        yield "model.norm.weight", (self.hidden,)
        if not self.tied:
            yield "lm_head.weight", (self.vocabulary, self.hidden)

    def config(self, *, fp8: bool = False) -> dict[str, Any]:
        """Its ``config.json``."""
        content: dict[str, Any] = {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "dtype": "bfloat16",
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.inner,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "rms_norm_eps": 1e-6,
            "rope_theta": self.rope_theta,
            "max_position_embeddings": self.positions,
            "attention_bias": False,
            "mlp_bias": False,
        }
        return content | ({"quantization_config": FP8_CONFIG} if fp8 else {})


FP8_CONFIG = {"quant_method": "fp8", "activation_scheme": "dynamic"}
"""One scale for each matrix, kept with it; activations are scaled as they come."""


def is_linear(name: str) -> bool:
    """Whether a tensor is a matrix of a layer (and not an embedding, a head or a norm)."""
    return name.endswith("_proj.weight")


SMOLLM2_135M = Shape(
    "smollm2-135m", "LlamaForCausalLM", "llama",
    hidden=576, layers=30, heads=9, kv_heads=3, head_dim=64, inner=1536, vocabulary=49_152,
    tied=True, normed_heads=False, rope_theta=100_000.0, positions=8192,
)  # fmt: skip
QWEN3_06B = Shape(
    "qwen3-0.6b", "Qwen3ForCausalLM", "qwen3",
    hidden=1024, layers=28, heads=16, kv_heads=8, head_dim=128, inner=3072, vocabulary=151_936,
    tied=True, normed_heads=True, rope_theta=1_000_000.0, positions=40_960,
)  # fmt: skip
QWEN3_8B = Shape(
    "qwen3-8b", "Qwen3ForCausalLM", "qwen3",
    hidden=4096, layers=36, heads=32, kv_heads=8, head_dim=128, inner=12_288, vocabulary=151_936,
    tied=False, normed_heads=True, rope_theta=1_000_000.0, positions=40_960,
)  # fmt: skip
SHAPES = {shape.name: shape for shape in (SMOLLM2_135M, QWEN3_06B, QWEN3_8B)}
