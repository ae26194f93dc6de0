"""The memory of a version's engine, estimated before it starts."""

from __future__ import annotations

import math
from pathlib import Path

import structlog
from safetensors import SafetensorError, safe_open

from model_store.base import locate_base
from model_store.errors import ModelStoreError
from model_store.manifest import BaseSpec, Manifest
from model_store.materialise import materialised_dir
from service.engine.loading import Device
from service.versions.memory_budget import OVERHEAD_BYTES

_log = structlog.get_logger(component="memory")

_SERVED_BYTES = 2
"""Per parameter: engines serve bf16, or on a CPU float16."""


class MemoryEstimate:
    """Estimates the memory of engines; call it with a manifest.

    Weights are counted in the materialised folder if there is one, else in the base that they will
    be merged into; if neither is on this machine, they are left out with a warning.

    Each file is read once. Reading a GGUF takes seconds: estimate each version outside the event
    loop first.

    Args:
        cache_dir: where versions are materialised and remote bases kept.
        kv_cache_bytes: keys and values of each engine.
        device: where engines run.
        float32: whether weights are served in float32, which takes twice as much.
    """

    def __init__(
        self, *, cache_dir: Path, kv_cache_bytes: int, device: Device, float32: bool = False
    ) -> None:
        self._cache_dir = cache_dir
        self._factor = 2 if float32 else 1
        self._fixed = kv_cache_bytes + OVERHEAD_BYTES[device]
        self._materialised: dict[str, int] = {}
        self._expected: dict[str, int | None] = {}
        self._bases: dict[str, int | None] = {}

    def __call__(self, manifest: Manifest) -> int:
        """Bytes of the engine of this version while it serves."""
        return self._fixed + self._factor * (self._weights(manifest) or 0)

    def _weights(self, manifest: Manifest) -> int | None:
        digest = manifest.digest
        if digest in self._materialised:
            return self._materialised[digest]
        exact = safetensors_bytes(materialised_dir(manifest, self._cache_dir))
        if exact is not None:
            self._materialised[digest] = exact
            return exact
        if digest not in self._expected:
            expected = self._expected[digest] = self._before_merging(manifest)
            if expected is None:
                _log.warning(
                    "weights_unknown",
                    version=manifest.name,
                    detail="its base is not on this machine yet; its weights are not counted",
                )
        return self._expected[digest]

    def _before_merging(self, manifest: Manifest) -> int | None:
        if manifest.weights.kind == "full":
            files = manifest.files.items()
            return sum(spec.bytes for name, spec in files if name.endswith(".safetensors"))
        spec = manifest.base
        if spec.sha256 not in self._bases:
            base = _local_base(spec, self._cache_dir)
            count = safetensors_bytes if base is not None and base.is_dir() else gguf_bytes
            self._bases[spec.sha256] = None if base is None else count(base)
        return self._bases[spec.sha256]


def safetensors_bytes(folder: Path) -> int | None:
    """Bytes that the safetensors of a folder take as bf16; ``None`` if there are none to read."""
    parameters = 0
    for path in folder.rglob("*.safetensors"):
        try:
            with safe_open(path, framework="numpy") as tensors:
                parameters += sum(
                    math.prod(tensors.get_slice(name).get_shape())
                    for name in tensors.keys()  # noqa: SIM118 - it is no mapping
                )
        except (OSError, SafetensorError):
            return None
    return parameters * _SERVED_BYTES or None


def gguf_bytes(path: Path) -> int | None:
    """Bytes that the tensors of a GGUF file take as bf16; ``None`` if it cannot be read."""
    from gguf import GGUFReader

    try:
        tensors = GGUFReader(path).tensors
    except (OSError, ValueError, LookupError, OverflowError):
        return None
    return sum(int(tensor.n_elements) for tensor in tensors) * _SERVED_BYTES


def _local_base(spec: BaseSpec, cache_dir: Path) -> Path | None:
    """The base if it is on this machine: an estimate fetches nothing."""
    remote = "://" in spec.source and not spec.source.startswith("file://")
    if remote and not (cache_dir / "bases" / spec.sha256).exists():
        return None
    try:
        return locate_base(spec, cache_dir)
    except ModelStoreError:
        return None
