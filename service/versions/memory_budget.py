"""Whether one more engine fits: the memory that all engines may take.

An engine that lacks memory crashes, or other processes are killed. So its memory is estimated
before it starts: the merged weights, the configured cache of keys and values, and an overhead.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil
import pynvml
import structlog

from model_store.manifest import Manifest
from service.engine.loading import Device
from service.errors import InsufficientMemory

_log = structlog.get_logger(component="memory")

CPU_SHARE = 0.8
"""Share of the machine's or the container's memory; this process with its cache and the operating
system need the rest."""
CUDA_SHARE = 0.9
"""Share of the GPU's memory; the driver and short peaks of the engines need the rest."""

OVERHEAD_BYTES: Mapping[Device, int] = {"cpu": 1_500_000_000, "cuda": 2 * 2**30}
"""Memory of an engine core beside weights, keys and values.

On a CPU it is measured: with weights of 269 MB and 512 MiB of keys and values, 1.85 GB were
resident at the start (1.04 GB of overhead), and up to 2.13 GB (1.33 GB) after some hundred queries
of all lengths, when oneDNN keeps code for as many shapes as it may; the rest is reserve. On a GPU
it is a rough estimate: context, activations of 8,192 tokens, captured graphs.
"""

_MIB = 2**20


class MemoryBudget:
    """The memory that all engines may take together.

    Args:
        limit_bytes: the limit; with ``None`` everything fits.
        estimate: bytes of the engine of a version.
    """

    def __init__(self, limit_bytes: int | None, estimate: Callable[[Manifest], int]) -> None:
        self.limit_bytes = limit_bytes
        self.estimate = estimate

    @classmethod
    def unlimited(cls) -> MemoryBudget:
        """A budget that everything fits into."""
        return cls(None, lambda _manifest: 0)

    def reserved(self, loaded: Iterable[Manifest]) -> int:
        """Bytes of the engines of ``loaded``."""
        return sum(self.estimate(manifest) for manifest in loaded)

    def admit(self, manifest: Manifest, loaded: Iterable[Manifest]) -> None:
        """Check that one more engine fits.

        Args:
            manifest: of the version to load.
            loaded: of the versions that have an engine, or are starting or stopping one.

        Raises:
            InsufficientMemory: it does not fit.
        """
        if self.limit_bytes is None:
            return
        others = tuple(loaded)
        needed = self.estimate(manifest)
        free = self.limit_bytes - self.reserved(others)
        if needed <= free:
            return
        advice = "raise REQUERY_ENGINE_MEMORY_BYTES if the machine has more"
        if others:
            names = ", ".join(sorted(other.name for other in others))
            advice = f"unload another version first (there are engines for: {names}), or {advice}"
        raise InsufficientMemory(
            f"version {manifest.name} needs about {mib(needed)} and {mib(max(free, 0))} of "
            f"{mib(self.limit_bytes)} are free; {advice}"
        )


def mib(size: int) -> str:
    """``size`` bytes in MiB, as text."""
    return f"{size / _MIB:.0f} MiB"


def memory_limit(configured: int | None, device: Device) -> int | None:
    """Bytes that all engines may take together: as configured, else a share of the device's memory.

    It may block for seconds because a GPU's driver is asked.

    Returns:
        ``None``, with a warning in the log, if the memory of the device is unknown.
    """
    if configured is not None:
        return configured
    total = cpu_memory() if device == "cpu" else gpu_memory()
    if total is None:
        _log.warning(
            "memory_unknown",
            device=device,
            detail="engines are started whether they fit or not; set REQUERY_ENGINE_MEMORY_BYTES",
        )
        return None
    return int(total * (CPU_SHARE if device == "cpu" else CUDA_SHARE))


def cpu_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Bytes of main memory that this process may use: the machine's, or its container's if less.

    Args:
        proc: the process file system.
        cgroups: where control groups (either version) are mounted.
    """
    machine: int = psutil.virtual_memory().total
    return min([machine, *_cgroup_limits(proc, cgroups)])


def gpu_memory(visible: str | None = None) -> int | None:
    """Bytes of the GPU that engines run on: the first one that is visible.

    Args:
        visible: overrides ``CUDA_VISIBLE_DEVICES``: indices or UUIDs.

    Returns:
        ``None`` if there is no such GPU, or its driver does not say.
    """
    if visible is None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    try:
        pynvml.nvmlInit()
        try:
            gpu = _gpu(visible.partition(",")[0].strip())
            return int(pynvml.nvmlDeviceGetMemoryInfo(gpu).total)
        finally:
            pynvml.nvmlShutdown()
    except pynvml.NVMLError:
        return None


def _gpu(name: str) -> object:
    """Handle of the GPU with this index, or whose UUID begins so; empty is the first one."""
    if not name or name.isdecimal():
        return pynvml.nvmlDeviceGetHandleByIndex(int(name or 0))
    for index in range(pynvml.nvmlDeviceGetCount()):
        gpu: object = pynvml.nvmlDeviceGetHandleByIndex(index)
        if pynvml.nvmlDeviceGetUUID(gpu).startswith(name):
            return gpu
    # Perhaps the UUID of a part of a GPU (MIG).
    return pynvml.nvmlDeviceGetHandleByUUID(name)


def _cgroup_limits(proc: Path, cgroups: Path) -> Iterable[int]:
    """Memory limits of this process's control group and of its parents."""
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if not controllers:
            root, name = cgroups, "memory.max"
        elif "memory" in controllers.split(","):
            root, name = cgroups / "memory", "memory.limit_in_bytes"
        else:
            continue
        # In a container the path can be the host's, of which only the root is mounted.
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root):
                with suppress(OSError, ValueError):  # "max" is no limit
                    yield int((folder / name).read_text())
