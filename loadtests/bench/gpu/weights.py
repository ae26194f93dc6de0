"""Writes models of a shape: random weights, or those of a folder, in bfloat16 or FP8.

Run as ``python -m loadtests.bench.gpu.weights <shape> <bf16|fp8> <tokenizer.json> <folder>``, in a
process of its own, since the weights of the largest take 16 GB. FP8 is what vLLM reads as
``quant_method: fp8``: the matrices of the layers as ``float8_e4m3fn`` with one scale each, all else
in bfloat16.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from loadtests.bench.gpu.shapes import FP8_CONFIG, SHAPES, Shape, is_linear

_FP8_MOST = 448.0
"""The largest number of ``float8_e4m3fn``."""
_STANDARD_DEVIATION = 0.02
_SHARD_BYTES = 2 * 2**30
_SEED = 0


def write_random(shape: Shape, folder: Path, tokenizer: Path, *, fp8: bool) -> None:
    """A model of a shape, with a tokenizer that knows all of its vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", shape.config(fp8=fp8))
    _write_json(
        folder / "tokenizer.json",
        widened(json.loads(tokenizer.read_text(encoding="utf-8")), shape.vocabulary),
    )
    _save(_quantised(_random(shape)) if fp8 else _random(shape), folder)


def quantise(source: Path, folder: Path) -> None:
    """The model of a folder, in FP8."""
    import safetensors

    folder.mkdir(parents=True, exist_ok=True)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    _write_json(folder / "config.json", {**config, "quantization_config": FP8_CONFIG})
    (folder / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())

    def tensors() -> Iterator[tuple[str, Any]]:
        for file in sorted(source.glob("*.safetensors")):
            with safetensors.safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118 - it is no dictionary
                    yield name, opened.get_tensor(name)

    _save(_quantised(tensors()), folder)


def widened(tokenizer: dict[str, Any], vocabulary: int) -> dict[str, Any]:
    """A tokenizer (``tokenizer.json``) in which every id of a vocabulary means something.

    What is added has no merges, so no text is ever split into it; it only can be decoded, as a
    model with random weights demands.
    """
    known: dict[str, int] = tokenizer["model"]["vocab"]
    # Without a gap: added tokens that the vocabulary lacks would be given numbers after its end.
    known.update({token["content"]: token["id"] for token in tokenizer.get("added_tokens", ())})
    taken = set(known.values())
    # "Ġ" is a leading space in the alphabet of byte-level tokenizers.
    known.update({f"\u0120x{i}": i for i in range(vocabulary) if i not in taken})
    return tokenizer


def _random(shape: Shape) -> Iterator[tuple[str, Any]]:
    import torch

    generator: Any = torch.Generator().manual_seed(_SEED)
    for name, size in shape.tensors():
        if name.endswith("norm.weight"):
            yield name, torch.ones(size, dtype=torch.bfloat16)
        else:
            drawn = torch.empty(size, dtype=torch.bfloat16)
            yield name, drawn.normal_(0.0, _STANDARD_DEVIATION, generator=generator)


def _quantised(tensors: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    import torch

    for name, tensor in tensors:
        if not is_linear(name):
            yield name, tensor
            continue
        exact = tensor.float()
        scale = exact.abs().max().clamp(min=1e-12) / _FP8_MOST
        yield name, (exact / scale).to(torch.float8_e4m3fn)
        yield name.removesuffix("weight") + "weight_scale", scale.reshape(1)


def _save(tensors: Iterator[tuple[str, Any]], folder: Path) -> None:
    """In files of a bounded size, so that no more than one has to be in memory."""
    from safetensors.torch import save_file

    files: list[list[str]] = []
    held: dict[str, Any] = {}
    total = size = 0

    def flush() -> None:
        save_file(held, folder / _file(len(files)), metadata={"format": "pt"})
        files.append(list(held))
        held.clear()

    for name, tensor in tensors:
        held[name] = tensor.contiguous()
        size += tensor.numel() * tensor.element_size()
        if size >= _SHARD_BYTES:
            total, size = total + size, 0
            flush()
    if held:
        total += size
        flush()
    places = {name: _file(number) for number, names in enumerate(files) for name in names}
    index = {"metadata": {"total_size": total}, "weight_map": places}
    _write_json(folder / "model.safetensors.index.json", index)


def _file(number: int) -> str:
    return f"model-{number + 1:05d}.safetensors"


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def main(arguments: list[str]) -> None:
    """Write one model."""
    name, precision, source, folder = arguments
    if Path(source).is_dir():
        quantise(Path(source), Path(folder))
    else:
        write_random(SHAPES[name], Path(folder), Path(source), fp8=precision == "fp8")


if __name__ == "__main__":
    main(sys.argv[1:])
