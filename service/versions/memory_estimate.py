"""What the engine of a version takes in memory, estimated without starting it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import structlog

from model_store.base import locate_base
from model_store.errors import ModelStoreError
from model_store.manifest import BaseSpec, Manifest
from model_store.materialise import materialised_dir
from service.engine.loading import Device
from service.versions.memory_budget import OVERHEAD_BYTES

_log = structlog.get_logger(component="memory")

_SERVED_BYTES = 2
"""Of each parameter: engines serve bf16."""
_GGUF_BITS = {"F32": 32.0, "F16": 16.0, "BF16": 16.0, "Q8": 8.5, "Q6": 6.6, "Q5": 5.5, "Q4": 4.5}
"""Of each parameter by the quantisation in the name of a GGUF file, scales included: at most the
true figure, so that the estimate is at least the true one."""
_GGUF_BITS_UNKNOWN = 4.0
_QUANTISATION = re.compile(r"(?:^|[._-])(BF16|F16|F32|Q[4568])(?=[._-]|$)", re.IGNORECASE)
_MAX_HEADER_BYTES = 100_000_000


class Footprint:
    """Estimates the memory of engines; call it with a manifest.

    Weights are counted from the materialised folder if there is one, else from the base that they
    will be merged into, else they are left out with a warning.

    Args:
        cache_dir: where versions are materialised and remote bases kept.
        kv_cache_bytes: keys and values of each engine.
        device: where engines run.
    """

    def __init__(self, *, cache_dir: Path, kv_cache_bytes: int, device: Device) -> None:
        self._cache_dir = cache_dir
        self._besides = kv_cache_bytes + OVERHEAD_BYTES[device]
        # Files are looked at once: asking for the state of the fleet must stay cheap.
        self._exact: dict[str, int] = {}
        self._rough: dict[str, int | None] = {}

    def __call__(self, manifest: Manifest) -> int:
        """Bytes that the engine of this version takes while it serves."""
        return self._besides + (self._weights(manifest) or 0)

    def _weights(self, manifest: Manifest) -> int | None:
        digest = manifest.digest
        exact = self._exact.get(digest)
        if exact is not None:
            return exact
        exact = served_bytes(materialised_dir(manifest, self._cache_dir))
        if exact is not None:
            self._exact[digest] = exact
            return exact
        if digest not in self._rough:
            rough = self._rough[digest] = expected_bytes(manifest, self._cache_dir)
            if rough is None:
                _log.warning(
                    "weights_unknown",
                    version=manifest.name,
                    detail="its base is not on this machine yet; its weights are not counted",
                )
        return self._rough[digest]


def expected_bytes(manifest: Manifest, cache_dir: Path) -> int | None:
    """Bytes of a version's weights once they are merged; ``None`` if the base is not here."""
    if manifest.weights.kind == "full":
        return sum(s.bytes for name, s in manifest.files.items() if name.endswith(".safetensors"))
    base = _local_base(manifest.base, cache_dir)
    if base is None:
        return None
    if base.is_dir():
        return served_bytes(base)
    return gguf_bytes(base)


def served_bytes(folder: Path) -> int | None:
    """Bytes that the safetensors of a folder take as bf16; ``None`` if there are none to read."""
    try:
        counts = [parameters(path) for path in folder.rglob("*.safetensors")]
    except (OSError, ValueError):
        return None
    return sum(counts) * _SERVED_BYTES or None


def parameters(path: Path) -> int:
    """Numbers in a safetensors file, as its header has it.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no safetensors file.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        raw = file.read(min(length, _MAX_HEADER_BYTES))
    try:
        header = json.loads(raw)
        return sum(math.prod(t["shape"]) for name, t in header.items() if name != "__metadata__")
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no safetensors file") from error


def gguf_bytes(path: Path) -> int | None:
    """Bytes that a GGUF file's weights take as bf16, by the quantisation in its name."""
    try:
        size = path.stat().st_size
    except OSError:
        return None
    found = _QUANTISATION.search(path.stem)
    bits = _GGUF_BITS[found[1].upper()] if found else _GGUF_BITS_UNKNOWN
    return int(size * 8 * _SERVED_BYTES / bits)


def _local_base(spec: BaseSpec, cache_dir: Path) -> Path | None:
    """The base if it is on this machine: an estimate fetches nothing."""
    remote = "://" in spec.source and not spec.source.startswith("file://")
    if remote and not (cache_dir / "bases" / spec.sha256).exists():
        return None
    try:
        return locate_base(spec, cache_dir)
    except ModelStoreError:
        return None
