"""Reads a base model and merges an adapter into it: the part of materialising that needs torch.

Run as a separate program (``python -m model_store.merge BASE OUT [ADAPTER]``), so that its memory
is free before anything is served. It prints the outcome as one JSON line.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import sys
from pathlib import Path
from typing import Any

from model_store.errors import CannotWrite, InvalidVersion, ModelStoreError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

_PLAIN_LORA = frozenset(
    {
        "alpha_pattern", "base_model_name_or_path", "bias", "ensure_weight_tying",
        "exclude_modules", "fan_in_fan_out", "inference_mode", "init_lora_weights",
        "layers_pattern", "layers_to_transform", "lora_alpha", "lora_bias", "lora_dropout",
        "megatron_core", "modules_to_save", "peft_type", "peft_version", "qalora_group_size", "r",
        "rank_pattern", "revision", "target_modules", "target_parameters", "task_type",
        "trainable_token_indices", "use_dora", "use_rslora",
    }
)  # fmt: skip
"""Fields that may be set. Others make PEFT import modules that the file names, read further files,
or add layers; megatron_core and qalora_group_size have no effect by themselves."""
_MAX_RANK = 1024


def load_base_model(base: Path) -> Any:
    """The base as a float32 transformers model on the CPU, from a GGUF file or a folder.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is no model that transformers knows.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if base.is_dir():
        return AutoModelForCausalLM.from_pretrained(
            base,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
        )
    model = AutoModelForCausalLM.from_pretrained(
        base.parent, gguf_file=base.name, dtype=torch.float32, local_files_only=True
    )
    # The weights are widened already; without this the model counts as quantised and cannot be
    # saved.
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.hf_quantizer = None
    model.is_quantized = False
    return model


def load_base_tokenizer(base: Path) -> Any:
    """The base's tokenizer, as transformers reads it (some 10 s from a GGUF file).

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no tokenizer that transformers knows.
    """
    from transformers import AutoTokenizer

    if base.is_dir():
        return AutoTokenizer.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    return AutoTokenizer.from_pretrained(base.parent, gguf_file=base.name, local_files_only=True)


def check_adapter(adapter: Path) -> None:
    """Refuse adapters other than plain LoRA before a library reads their configuration.

    Raises:
        InvalidVersion: a file is missing, or the adapter is of another kind.
    """
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (adapter / name).is_file():
            raise InvalidVersion(f"{adapter} holds no {name}: it is no PEFT adapter")
    try:
        config = json.loads((adapter / ADAPTER_CONFIG).read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidVersion(f"{adapter / ADAPTER_CONFIG}: {_line(error)}") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise InvalidVersion(f"{adapter / ADAPTER_CONFIG}: only LoRA adapters can be merged")
    for field, value in config.items():
        if value and field not in _PLAIN_LORA:
            raise InvalidVersion(
                f"{adapter / ADAPTER_CONFIG}: {field[:64]!a} is not supported; only plain LoRA is"
            )
    if config.get("init_lora_weights") not in (None, True, False, "gaussian"):
        raise InvalidVersion(f"{adapter / ADAPTER_CONFIG}: init_lora_weights must be a truth value")
    _check_ranks(config, adapter)


def _check_ranks(config: dict[str, Any], adapter: Path) -> None:
    """Refuse huge ranks, because PEFT allocates them before it reads the weights."""
    pattern = config.get("rank_pattern") or {}
    ranks = [config.get("r", 1), *(pattern.values() if isinstance(pattern, dict) else [None])]
    if not all(type(rank) is int and 1 <= rank <= _MAX_RANK for rank in ranks):
        raise InvalidVersion(
            f"{adapter / ADAPTER_CONFIG}: ranks must be whole numbers from 1 to {_MAX_RANK}"
        )


def merge(base: Path, out: Path, adapter: Path | None = None) -> None:
    """Write ``base`` with ``adapter`` merged into it as bf16 safetensors, in the usual layout.

    Raises:
        InvalidVersion: base and adapter do not fit together, or cannot be read.
        CannotWrite: the disk is full.
    """
    import torch
    from safetensors import SafetensorError

    if adapter is not None:
        check_adapter(adapter)
    try:
        model = load_base_model(base)
        if adapter is not None:
            model = _merged(model, adapter)
        tokenizer = load_base_tokenizer(base)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        what = f"{base} and {adapter}" if adapter else str(base)
        raise InvalidVersion(f"cannot build a model of {what}: {_line(error)}") from error
    if not all(bool(p.isfinite().all()) for p in model.parameters()):
        raise InvalidVersion(f"the weights of {adapter or base} are not finite numbers")
    try:
        model.to(torch.bfloat16).save_pretrained(out)
        tokenizer.save_pretrained(out)
    except (OSError, SafetensorError) as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        raise CannotWrite("no space left" if full else _line(error)) from error


def _merged(model: Any, adapter: Path) -> Any:
    from peft import PeftModel

    tuned = PeftModel.from_pretrained(model, str(adapter), is_trainable=False)
    # "safe_merge" would check each layer for infinities; merge() checks once, at the end.
    merged = tuned.merge_and_unload(safe_merge=False)
    # Trained token rows are merged into the input embedding; a tied output must follow it.
    merged.tie_weights()
    return merged


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def main(arguments: list[str]) -> int:
    """Merge by command line; 0 on success."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    import gguf
    import transformers

    transformers.utils.logging.disable_progress_bar()
    # transformers builds this table for every module of the model, and parses the same file for the
    # configuration, the weights and the tokenizer (15 s in all).
    for name in ("get_tensor_name_map", "GGUFReader"):
        vars(gguf)[name] = functools.cache(getattr(gguf, name))
    base, out = Path(arguments[0]), Path(arguments[1])
    adapter = Path(arguments[2]) if len(arguments) > 2 else None
    outcome: dict[str, str] = {}
    try:
        merge(base, out, adapter)
    except ModelStoreError as error:
        outcome = {"error": type(error).__name__, "message": str(error)}
    sys.stdout.write(json.dumps(outcome) + "\n")
    return 1 if outcome else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
