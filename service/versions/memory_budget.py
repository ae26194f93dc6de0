"""Whether one more engine fits: how much memory engines may take, and what each of them takes.

Engines are processes that say what they need only by failing, or by having others killed. So
their need is estimated before they start, from what is known by then: the merged weights, the
cache of keys and values that they are told to keep, and what an engine core takes besides.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import structlog

from model_store.manifest import Manifest
from service.engine.loading import Device
from service.errors import InsufficientMemory

_log = structlog.get_logger(component="memory")

CPU_SHARE = 0.8
"""Of the machine's or the container's memory; the rest is for this process, with its cache, and
the operating system."""
CUDA_SHARE = 0.9
"""Of the GPU's memory; the rest is for the driver and for what engines take for a moment."""

OVERHEAD_BYTES: Mapping[Device, int] = {"cpu": 1_500_000_000, "cuda": 2 * 2**30}
"""What an engine core takes beside weights, keys and values. On a CPU this is measured: 1.85 GB
were resident at the start with weights of 269 MB and 512 MiB of keys and values, which makes
1.04 GB, and up to 2.13 GB after some hundred queries of all lengths, when oneDNN has code for as
many shapes as it may keep (more than it may now), which makes 1.33 GB; the rest is reserve. On a
GPU it is an estimate (context, activations of 8,192 tokens, captured graphs), and nothing to rely
on to the byte."""

_NVIDIA_SMI = (
    "nvidia-smi", "--query-gpu=index,uuid,memory.total", "--format=csv,noheader,nounits",
)  # fmt: skip
_NVIDIA_SMI_SECONDS = 15
_MIB = 2**20


class MemoryBudget:
    """What engines may take together.

    Args:
        limit_bytes: of all engines; ``None`` if it is not known, and then everything fits.
        estimate: bytes that the engine of a version takes.
    """

    def __init__(self, limit_bytes: int | None, estimate: Callable[[Manifest], int]) -> None:
        self.limit_bytes = limit_bytes
        self.estimate = estimate

    @classmethod
    def unlimited(cls) -> MemoryBudget:
        """A budget that everything fits into."""
        return cls(None, lambda _manifest: 0)

    def reserved(self, loaded: Iterable[Manifest]) -> int:
        """Bytes that the engines of ``loaded`` take."""
        return sum(self.estimate(manifest) for manifest in loaded)

    def admit(self, manifest: Manifest, loaded: Iterable[Manifest]) -> None:
        """Check that one more engine fits.

        Args:
            manifest: of the version to load.
            loaded: of those that have an engine, or are getting one, or have not let go of it.

        Raises:
            InsufficientMemory: it does not; says what it needs and what is free.
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
    """Bytes for people."""
    return f"{size / _MIB:.0f} MiB"


def memory_limit(configured: int | None, device: Device) -> int | None:
    """Bytes that all engines may take together: as configured, else a share of what there is.

    May take seconds on a GPU, whose driver is asked.

    Returns:
        ``None``, with a warning in the log, if it cannot be known.
    """
    if configured is not None:
        return configured
    there = cpu_memory() if device == "cpu" else gpu_memory()
    if there is None:
        _log.warning(
            "memory_unknown",
            device=device,
            detail="engines are started whether they fit or not; set REQUERY_ENGINE_MEMORY_BYTES",
        )
        return None
    return int(there * (CPU_SHARE if device == "cpu" else CUDA_SHARE))


def cpu_memory(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes of main memory that this process may use: the machine's, or its container's if less.

    Args:
        proc: the process file system.
        cgroups: where control groups (either version) are mounted.
    """
    found = [size for size in (_machine(proc), *_groups(proc, cgroups)) if size is not None]
    return min(found, default=None)


def gpu_memory(ask: Callable[[], str] | None = None, visible: str | None = None) -> int | None:
    """Bytes of the GPU that engines run on: the first that is visible.

    Args:
        ask: gives index, UUID and MiB of each GPU, a line each; default: ``nvidia-smi``.
        visible: as ``CUDA_VISIBLE_DEVICES``, which is the default, has it.
    """
    if visible is None:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    first = visible.partition(",")[0].strip()
    try:
        lines = (ask or _ask_nvidia)().splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    for line in lines:
        index, uuid, size = [*(part.strip() for part in line.split(",")), "", "", ""][:3]
        if (not first or first == index or uuid.startswith(first)) and size.isdigit():
            return int(size) * _MIB
    return None


def _machine(proc: Path) -> int | None:
    try:
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _groups(proc: Path, cgroups: Path) -> Iterable[int]:
    """The limits of this process's control group and of all around it."""
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
        # Inside a container the path can be the host's, of which only the root is to be seen.
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(root) and (size := _number(folder / name)) is not None:
                yield size


def _number(file: Path) -> int | None:
    try:
        text = file.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _ask_nvidia() -> str:
    return subprocess.run(  # noqa: S603 - a fixed command of the driver's
        _NVIDIA_SMI,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_NVIDIA_SMI_SECONDS,
        check=True,
        text=True,
    ).stdout
