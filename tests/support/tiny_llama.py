"""A random Llama with a tokenizer of bytes, small enough to train in a test."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from model_store.base import base_digest
from tests.support.model_versions import PROMPT, byte_tokenizer


def write_base(folder: Path) -> None:
    """A random Llama of 70 thousand weights with a tokenizer of bytes.

    Its heads have 32 dimensions, the fewest that the serving engine can run.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=264, hidden_size=64, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=1024,
        tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer()).save_pretrained(folder)


def tiny_recipe(base: Path, **changes: Any) -> dict[str, Any]:
    """A recipe on that base, as its YAML would have it."""
    optimiser = {"learning_rate": 1e-3, "rows": 2, "row_tokens": 128}
    return {
        "name": "micro-1",
        "description": "for a test",
        "base": {"source": str(base), "sha256": base_digest(base), "license": "none"},
        "data": {"source": "tables", "noisy_pairs": 10},
        "prompt": PROMPT.model_dump(),
        "adapter": {"rank": 2, "alpha": 4},
        # On so small a model a timing is chance, and runs are compared.
        "precision": "bfloat16",
        "stages": [
            {"kind": "domain", "tokens": 600, "optimiser": optimiser},
            {"kind": "sft", "tokens": 2000, "optimiser": optimiser},
        ],
        "decoding": {"temperatures": [0.0], "max_tokens": 64},
    } | changes
