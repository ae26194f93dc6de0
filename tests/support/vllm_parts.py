"""A Llama in plain torch, made of parts with the names that vLLM gives to its own on a CPU.

Import it only where torch is there. Its attention, over a cache in blocks, and the kernels are two
writings of the same arithmetic, so that a test can hold one against the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

HIDDEN, HEADS, KV_HEADS, SIZE, WIDE, VOCABULARY = 16, 4, 2, 4, 24, 11
LAYERS, BLOCK, BLOCKS_EACH, SEQUENCES = 2, 4, 4, 16
"""A sequence has at most ``BLOCK * BLOCKS_EACH`` tokens."""


@dataclass
class Metadata:
    """Of a step, for its attention: what vLLM's ``CPUAttentionMetadata`` has."""

    query_start_loc: Tensor
    seq_lens: Tensor
    block_table: Tensor
    slot_mapping: Tensor
    causal: bool = True
    scheduler_metadata: None = None
    dynamic_causal: None = None


class Linear(nn.Module):
    def __init__(self, columns_in: int, columns_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(columns_out, columns_in) * columns_in**-0.5)
        self.bias = nn.Parameter(torch.randn(columns_out) * 0.1)
        self.tp_size = 1
        self.cpu_linear: Any = functional.linear

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        multiply = getattr(self, "cpu_linear", None) or functional.linear
        return multiply(x, self.weight, self.bias), None


class RMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        # Far from all alike, so that a weight that is forgotten shows.
        self.weight = nn.Parameter(torch.randn(HIDDEN) * 0.6 + 1)
        self.variance_epsilon = 1e-5
        self.has_weight = True
        self.variance_size_override: int | None = None

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Any:
        total = x if residual is None else x + residual
        normed = functional.rms_norm(total, (HIDDEN,), self.weight, self.variance_epsilon)
        return normed if residual is None else (normed, total)


class RotaryEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        angles = torch.outer(
            torch.arange(BLOCK * BLOCKS_EACH).float(), 100.0 ** -(torch.arange(SIZE // 2) / 2)
        )
        self.register_buffer("cos_sin_cache", torch.cat([angles.cos(), angles.sin()], -1))
        self.is_neox_style = True

    def forward(self, positions: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = self.get_buffer("cos_sin_cache")[positions][:, None].chunk(2, -1)

        def rotated(x: Tensor) -> Tensor:
            a, b = x.view(len(x), -1, SIZE).chunk(2, -1)
            return torch.cat([a * cos - b * sin, b * cos + a * sin], -1).view(x.shape)

        return rotated(query), rotated(key)


class CPUAttentionBackendImpl:
    def __init__(self) -> None:
        self.scale = SIZE**-0.5
        self.sinks: Any = None
        self.alibi_slopes: Any = None
        self.use_zentorch_sdpa = False
        self.kv_cache_dtype = "auto"
        self.sliding_window = -1
        self.logits_soft_cap = 0


class Attention(nn.Module):
    """Causal, over a cache (blocks, KV heads, ``BLOCK``, 2 * ``SIZE``): keys, then values."""

    def __init__(self, context: SimpleNamespace, number: int) -> None:
        super().__init__()
        self.layer_name = f"layers.{number}.attn"
        self.num_heads, self.num_kv_heads, self.head_size = HEADS, KV_HEADS, SIZE
        self.isa = "vec"
        self.query_quant: Any = None
        self.impl: Any = CPUAttentionBackendImpl()
        self.kv_cache = torch.zeros(SEQUENCES * BLOCKS_EACH, KV_HEADS, BLOCK, 2 * SIZE)
        self._context = context

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        if self._context.attn_metadata is None:
            return torch.zeros_like(query)
        at: Metadata = self._context.attn_metadata[self.layer_name]
        flat = self.kv_cache.view(-1, KV_HEADS, 2 * BLOCK, SIZE)
        keys, values = flat.chunk(2, dim=2)
        block, place = at.slot_mapping // BLOCK, at.slot_mapping % BLOCK
        keys[block, :, place] = key.view(-1, KV_HEADS, SIZE)
        values[block, :, place] = value.view(-1, KV_HEADS, SIZE)
        found = []
        for i, length in enumerate(at.seq_lens.tolist()):
            rows = query[at.query_start_loc[i] : at.query_start_loc[i + 1]]
            seen = [
                each[at.block_table[i]].transpose(0, 1).reshape(KV_HEADS, -1, SIZE)[:, :length]
                for each in (keys, values)
            ]
            places = torch.arange(length - len(rows), length)
            attended = functional.scaled_dot_product_attention(
                rows.view(-1, HEADS, SIZE).transpose(0, 1)[None],
                seen[0][None],
                seen[1][None],
                attn_mask=torch.arange(length)[None] <= places[:, None],
                enable_gqa=True,
            )
            found.append(attended[0].transpose(0, 1).reshape(len(rows), -1))
        return torch.cat(found)


class LlamaAttention(nn.Module):
    def __init__(self, context: SimpleNamespace, number: int) -> None:
        super().__init__()
        self.qkv_proj = Linear(HIDDEN, (HEADS + 2 * KV_HEADS) * SIZE)
        self.o_proj = Linear(HEADS * SIZE, HIDDEN)
        self.rotary_emb: Any = RotaryEmbedding()
        self.attn: Any = Attention(context, number)

    def forward(self, positions: Tensor, hidden: Tensor) -> Tensor:
        sizes = [HEADS * SIZE, KV_HEADS * SIZE, KV_HEADS * SIZE]
        query, key, value = self.qkv_proj(hidden)[0].split(sizes, -1)
        query, key = self.rotary_emb(positions, query, key)
        return self.o_proj(self.attn(query, key, value))[0]  # type: ignore[no-any-return]


class SiluAndMul(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        gate, up = x.chunk(2, -1)
        return functional.silu(gate) * up


class LlamaMLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate_up_proj, self.down_proj = Linear(HIDDEN, 2 * WIDE), Linear(WIDE, HIDDEN)
        self.act_fn: Any = SiluAndMul()

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act_fn(self.gate_up_proj(x)[0]))[0]  # type: ignore[no-any-return]


class LlamaDecoderLayer(nn.Module):
    def __init__(self, context: SimpleNamespace, number: int) -> None:
        super().__init__()
        self.input_layernorm: Any = RMSNorm()
        self.self_attn: Any = LlamaAttention(context, number)
        self.post_attention_layernorm: Any = RMSNorm()
        self.mlp: Any = LlamaMLP()

    def forward(self, positions: Tensor, hidden: Tensor, residual: Tensor | None) -> Any:
        if residual is None:
            hidden, residual = self.input_layernorm(hidden), hidden
        else:
            hidden, residual = self.input_layernorm(hidden, residual)
        hidden = self.self_attn(positions, hidden)
        hidden, residual = self.post_attention_layernorm(hidden, residual)
        return self.mlp(hidden), residual


class LlamaForCausalLM(nn.Module):
    """Remembers how many rows its pass and its head were asked for."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.context = SimpleNamespace(attn_metadata=None)
        self.model: Any = nn.Module()
        self.model.embed_tokens = nn.Embedding(VOCABULARY, HIDDEN)
        self.model.layers = nn.ModuleList(
            LlamaDecoderLayer(self.context, number) for number in range(LAYERS)
        )
        self.model.norm = RMSNorm()
        self.lm_head = Linear(HIDDEN, VOCABULARY)
        self.requires_grad_(False)
        self.passed: list[int] = []
        self.headed: list[int] = []

    def embed(self, input_ids: Tensor) -> Tensor:
        return self.model.embed_tokens(input_ids)  # type: ignore[no-any-return]

    def forward(self, input_ids: Tensor, positions: Tensor, inputs_embeds: Any = None) -> Tensor:
        self.passed.append(len(input_ids))
        hidden, residual = self.embed(input_ids) if inputs_embeds is None else inputs_embeds, None
        for layer in self.model.layers:
            hidden, residual = layer(positions, hidden, residual)
        return self.model.norm(hidden, residual)[0]  # type: ignore[no-any-return]

    def compute_logits(self, hidden: Tensor) -> Tensor:
        self.headed.append(len(hidden))
        return self.lm_head(hidden)[0]  # type: ignore[no-any-return]

    def attentions(self) -> Iterator[Any]:
        for layer in self.model.layers:
            yield layer.self_attn.attn


class Found(NamedTuple):
    """As vLLM's ``LogprobsTensors``."""

    logprob_token_ids: Any
    logprobs: Any
    selected_token_ranks: Any
    cu_num_generated_tokens: list[int] | None = None


class Sampler:
    """As vLLM's: log probabilities first, then the temperatures, in place; then what was asked."""

    @staticmethod
    def compute_logprobs(logits: Any) -> Any:
        return logits.log_softmax(dim=-1, dtype=torch.float32)

    def gather_specific_token_logprobs(
        self, logprobs: Any, asked: Mapping[int, Sequence[int]], drawn: Any
    ) -> Found | None:
        if not asked:
            return None
        most = max(map(len, asked.values()))
        ids = torch.zeros(len(logprobs), most + 1, dtype=torch.int64)
        valid = torch.zeros(len(logprobs), most + 1, dtype=torch.bool)
        valid[:, 0] = True
        for row, tokens in asked.items():
            ids[row, 1 : len(tokens) + 1] = torch.tensor(tokens)
            valid[row, 1 : len(tokens) + 1] = True
        ids[:, 0] = drawn
        gathered = logprobs.gather(-1, ids).masked_fill(~valid, float("-inf"))
        ranks = (logprobs >= logprobs.gather(-1, drawn.unsqueeze(-1))).sum(-1)
        return Found(ids.to(torch.int32), gathered, ranks)

    def __call__(self, logits: Any, temperatures: Any, asked: Any) -> tuple[Any, Found | None]:
        """The drawn tokens, all greedy, and what was asked for."""
        raw = self.compute_logprobs(logits)
        drawn = logits.argmax(-1)
        logits.div_(temperatures.unsqueeze(1))
        return drawn, self.gather_specific_token_logprobs(raw, asked, drawn)


class Runner:
    """As much of vLLM's model runner as is looked at, and steps of its own.

    Args:
        model: what it runs.
    """

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.model = model
        self.sampler: Any = Sampler()
        self.input_batch = SimpleNamespace(num_reqs=0, req_ids=[])
        self.query_start_loc = SimpleNamespace(np=np.zeros(SEQUENCES + 1, dtype=np.int32))
        self.lora_config = self.speculative_config = None
        self.uses_mrope = False
        self.vllm_config = SimpleNamespace(
            model_config=SimpleNamespace(enforce_eager=True),
            compilation_config=SimpleNamespace(
                static_forward_context={each.layer_name: each for each in model.attentions()}
            ),
        )
        self.model_runner = self
        self._lengths: dict[str, int] = {}
        self._blocks: dict[str, list[int]] = {}
        self._free = list(range(SEQUENCES))

    def forget(self, name: str) -> None:
        """Free the blocks of a sequence that has ended."""
        self._free.append(self._blocks.pop(name)[-1] // BLOCKS_EACH)
        del self._lengths[name]

    def get_model(self) -> LlamaForCausalLM:
        return self.model

    def step(self, batch: Mapping[str, Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Hidden states of all rows, and the logits of the last of each sequence.

        Args:
            batch: by a sequence's name, the tokens that it goes on with.
        """
        known = self.input_batch
        known.num_reqs, known.req_ids = len(batch), list(batch)
        starts, lengths = [0], []
        positions: list[int] = []
        slots: list[int] = []
        for name, tokens in batch.items():
            begin = self._lengths.get(name, 0)
            if name not in self._blocks:
                first = self._free.pop(0) * BLOCKS_EACH
                self._blocks[name] = [*range(first, first + BLOCKS_EACH)][::-1]
            blocks = self._blocks[name]
            places = range(begin, begin + len(tokens))
            positions += places
            slots += [blocks[place // BLOCK] * BLOCK + place % BLOCK for place in places]
            starts.append(starts[-1] + len(tokens))
            lengths.append(begin + len(tokens))
            self._lengths[name] = lengths[-1]
        self.query_start_loc.np[: len(starts)] = starts
        at = Metadata(
            query_start_loc=torch.tensor(starts),
            seq_lens=torch.tensor(lengths),
            block_table=torch.tensor([self._blocks[name] for name in batch]),
            slot_mapping=torch.tensor(slots),
        )
        self.model.context.attn_metadata = {each.layer_name: at for each in self.model.attentions()}
        ids = torch.tensor([token for tokens in batch.values() for token in tokens])
        hidden = self.model.forward(
            input_ids=ids, positions=torch.tensor(positions), inputs_embeds=None
        )
        return hidden, self.model.compute_logits(hidden[torch.tensor(starts[1:]) - 1])

    def caches(self) -> Tensor:
        """All keys and values: (layers, blocks, KV heads, ``BLOCK``, 2 * ``SIZE``)."""
        return torch.stack([each.kv_cache for each in self.model.attentions()])


# What stands in for vLLM's operators: each writes into what it is given.


def rms_norm(out: Tensor, x: Tensor, weight: Tensor, epsilon: float) -> None:
    out.copy_(x * (x.pow(2).mean(-1, keepdim=True) + epsilon).rsqrt() * weight)


def fused_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> None:
    residual.add_(x)
    rms_norm(x, residual, weight, epsilon)


def rotary_embedding(
    positions: Tensor, query: Tensor, key: Tensor, size: int, cos_sin: Tensor, neox: bool
) -> None:
    assert neox
    half = size // 2
    for row, position in enumerate(positions.tolist()):
        turn = torch.complex(cos_sin[position, :half], cos_sin[position, half:])
        for x in (query[row], key[row]):
            heads = x.view(-1, size)
            turned = torch.complex(heads[:, :half].clone(), heads[:, half:].clone()) * turn
            heads[:, :half], heads[:, half:] = turned.real, turned.imag


def silu_and_mul(out: Tensor, x: Tensor) -> None:
    gate, up = x[:, : out.shape[1]], x[:, out.shape[1] :]
    out.copy_(gate * gate.sigmoid() * up)


def cpu_attn_reshape_and_cache(
    key: Tensor, value: Tensor, keys: Tensor, values: Tensor, slots: Tensor, isa: str
) -> None:
    assert isa == "vec"
    for row, slot in enumerate(slots.tolist()):
        keys[slot // BLOCK, :, slot % BLOCK] = key[row]
        values[slot // BLOCK, :, slot % BLOCK] = value[row]


def cpu_attention_with_kv_cache(
    query: Tensor, keys: Tensor, values: Tensor, out: Tensor, *others: Any
) -> None:
    starts, lengths, scale, causal, slopes, window, table, *rest = others
    assert causal
    assert (slopes, window, rest) == (None, -1, [0, None, None, None])
    for i, length in enumerate(lengths.tolist()):
        first, last = starts[i : i + 2].tolist()
        for row in range(first, last):
            until = length - (last - 1 - row)
            for head in range(HEADS):
                of = head * KV_HEADS // HEADS
                seen = [(table[i, t // BLOCK], of, t % BLOCK) for t in range(until)]
                weights = torch.stack([keys[s] @ query[row, head] for s in seen]) * scale
                out[row, head] = weights.softmax(0) @ torch.stack([values[s] for s in seen])


def kernels() -> SimpleNamespace:
    """As ``torch.ops._C``."""
    functions: tuple[Any, ...] = (
        rms_norm,
        fused_add_rms_norm,
        rotary_embedding,
        silu_and_mul,
        cpu_attn_reshape_and_cache,
        cpu_attention_with_kv_cache,
    )
    return SimpleNamespace(**{each.__name__: SimpleNamespace(default=each) for each in functions})
