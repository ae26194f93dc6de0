from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from model_store.manifest import Manifest
from service.errors import InsufficientMemory
from service.versions import memory_budget as memory
from service.versions.memory_budget import (
    CPU_SHARE,
    CUDA_SHARE,
    MemoryBudget,
    cpu_memory,
    gpu_memory,
    memory_limit,
)
from tests.support.versions import make_manifest

MIB = 2**20
GPUS = "0, GPU-aa11, 81559\n1, GPU-bb22, 40960\n"


def budget(limit_mib: int | None, **mib: int) -> MemoryBudget:
    def estimate(manifest: Manifest) -> int:
        return mib[manifest.name] * MIB

    return MemoryBudget(None if limit_mib is None else limit_mib * MIB, estimate)


A, B, C = (make_manifest(name) for name in "abc")


def test_what_fits_is_admitted_to_the_last_byte() -> None:
    budget(300, a=100, b=200).admit(B, [A])
    with pytest.raises(InsufficientMemory):
        budget(299, a=100, b=200).admit(B, [A])


def test_a_refusal_says_what_is_needed_what_is_free_and_what_to_do() -> None:
    with pytest.raises(InsufficientMemory) as caught:
        budget(500, a=150, b=50, c=400).admit(C, [B, A])
    assert str(caught.value) == (
        "version c needs about 400 MiB and 300 MiB of 500 MiB are free; unload another version "
        "first (there are engines for: a, b), or raise REQUERY_ENGINE_MEMORY_BYTES if the machine "
        "has more"
    )
    assert caught.value.status == 507


def test_a_version_that_alone_is_too_large_is_not_told_to_wait_for_others() -> None:
    with pytest.raises(InsufficientMemory) as caught:
        budget(100, a=101).admit(A, [])
    assert "unload" not in str(caught.value)


def test_nothing_is_free_rather_than_less_than_nothing() -> None:
    with pytest.raises(InsufficientMemory, match=r"\b0 MiB of 100 MiB"):
        budget(100, a=150, b=1).admit(B, [A])


def test_without_a_known_limit_everything_fits() -> None:
    budget(None, a=10**9, b=10**9).admit(B, [A])
    MemoryBudget.unlimited().admit(B, [A])


def test_what_is_configured_is_taken_as_it_is() -> None:
    assert memory_limit(5, "cpu") == 5
    assert memory_limit(5, "cuda") == 5


def test_by_default_it_is_a_share_of_what_the_device_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "cpu_memory", lambda: 1000)
    monkeypatch.setattr(memory, "gpu_memory", lambda: 2000)
    assert memory_limit(None, "cpu") == 1000 * CPU_SHARE
    assert memory_limit(None, "cuda") == 2000 * CUDA_SHARE


def test_what_cannot_be_known_is_no_limit_and_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "gpu_memory", lambda: None)
    with capture_logs() as logs:
        assert memory_limit(None, "cuda") is None
    (line,) = logs
    assert line["log_level"] == "warning"
    assert "REQUERY_ENGINE_MEMORY_BYTES" in line["detail"]


class Machine:
    """A machine of 8 GiB, as its files tell of it."""

    def __init__(self, root: Path, *groups: str) -> None:
        self.proc, self.cgroups = root / "proc", root / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        (self.proc / "meminfo").write_text(
            f"MemTotal:       {8 * 2**20} kB\nMemFree:        1024 kB\n"
        )
        (self.proc / "self" / "cgroup").write_text("\n".join(groups) + "\n")

    def limit(self, file: str, value: str) -> None:
        path = self.cgroups / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value + "\n")

    def memory(self) -> int | None:
        return cpu_memory(self.proc, self.cgroups)


def test_a_machine_without_control_groups_has_all_its_memory(tmp_path: Path) -> None:
    assert Machine(tmp_path).memory() == 8 * 2**30


def test_a_container_has_what_its_group_may_take(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/")
    machine.limit("memory.max", str(2**30))
    assert machine.memory() == 2**30


def test_the_least_limit_of_the_groups_around_counts(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "0::/pod/container")
    machine.limit("pod/container/memory.max", "max")
    machine.limit("pod/memory.max", str(3 * 2**30))
    machine.limit("memory.max", str(4 * 2**30))
    assert machine.memory() == 3 * 2**30


def test_older_control_groups_are_read_too(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "5:cpu,cpuacct:/x", "4:memory:/docker/abc", "0::/")
    # The container sees its own group as the root, and the host's path in /proc.
    machine.limit("memory/memory.limit_in_bytes", str(2**31))
    assert machine.memory() == 2**31


def test_a_limit_beyond_the_machine_is_none(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "4:memory:/")
    machine.limit("memory/memory.limit_in_bytes", "9223372036854771712")
    assert machine.memory() == 8 * 2**30


def test_a_machine_that_tells_nothing_has_no_known_memory(tmp_path: Path) -> None:
    assert cpu_memory(tmp_path, tmp_path) is None


@pytest.mark.parametrize(
    ("visible", "mib"),
    [("", 81559), ("1", 40960), ("1,0", 40960), ("GPU-bb", 40960), ("MIG-cc", None), ("7", None)],
)
def test_the_gpu_is_the_first_that_is_visible(visible: str, mib: int | None) -> None:
    found = gpu_memory(lambda: GPUS, visible)
    assert found == (None if mib is None else mib * MIB)


@pytest.mark.parametrize("output", ["", "\n", "0, GPU-aa11, [N/A]\n", "garbage\n"])
def test_a_gpu_that_does_not_tell_is_unknown(output: str) -> None:
    assert gpu_memory(lambda: output, "") is None


@pytest.mark.parametrize(
    "fault", [FileNotFoundError("nvidia-smi"), subprocess.TimeoutExpired("nvidia-smi", 15)]
)
def test_without_an_answer_from_the_driver_the_gpu_is_unknown(fault: Exception) -> None:
    def ask() -> str:
        raise fault

    assert gpu_memory(ask, "") is None
