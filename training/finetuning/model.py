"""The model being trained: a base, its LoRA adapter and the four marker rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from model_store.prompt import PromptFormat
from training.recipe import AdapterPart, Recipe


@dataclass(slots=True)
class Trainee:
    """A PEFT model with its tokenizer (bare, and as transformers has it) and prompt format.

    Attributes:
        bf16: whether its passes compute in bfloat16.
    """

    model: PeftModel
    tokenizer: Tokenizer
    fast: Any
    prompts: PromptFormat
    pad_id: int
    bf16: bool = True


def base_arguments(base: Path) -> tuple[str, dict[str, Any]]:
    """Arguments for ``from_pretrained``: a GGUF file is loaded by its folder and name."""
    if base.is_file():
        return str(base.parent), {"gguf_file": base.name}
    return str(base), {}


def load_trainee(base: Path, recipe: Recipe, adapter: Path | None = None) -> Trainee:
    """Load the base, attach a fresh adapter or continue ``adapter``.

    The frozen base is held in bfloat16, the adapter in float32.
    """
    where, extra = base_arguments(base)
    fast = AutoTokenizer.from_pretrained(where, **extra)
    tokenizer: Tokenizer = fast.backend_tokenizer
    prompts = PromptFormat(tokenizer, recipe.prompt)
    model = AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32, **extra)
    # A dequantised GGUF is an ordinary model; the leftover configuration says otherwise.
    if getattr(model.config, "quantization_config", None) is not None:
        del model.config.quantization_config
        model.hf_quantizer = None
        model.is_quantized = False
    _start_markers(model, tokenizer, recipe)
    model.to(torch.bfloat16)
    if adapter is not None:
        peft = PeftModel.from_pretrained(model, str(adapter), is_trainable=True)
    else:
        peft = get_peft_model(model, _lora(recipe.adapter, prompts))
    return Trainee(peft, tokenizer, fast, prompts, pad_id=int(fast.pad_token_id or 0))


def _lora(part: AdapterPart, prompts: PromptFormat) -> LoraConfig:
    return LoraConfig(
        r=part.rank,
        lora_alpha=part.alpha,
        lora_dropout=part.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        trainable_token_indices=[
            prompts.query_id,
            prompts.rewrite_id,
            prompts.labels.relevant,
            prompts.labels.irrelevant,
        ],
    )


def _start_markers(model: Any, tokenizer: Tokenizer, recipe: Recipe) -> None:
    """Start the marker rows from distinct ordinary words.

    A base's unused tokens share almost one untrained row: from there the two labels cannot be
    told apart.
    """
    rows = model.get_input_embeddings().weight.data
    for marker, word in recipe.label_words.items():
        source = tokenizer.encode(word, add_special_tokens=False).ids
        rows[tokenizer.token_to_id(getattr(recipe.prompt, marker))] = rows[source].mean(dim=0)
