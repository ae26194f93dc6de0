from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import psutil
import pynvml
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
    """A machine of 8 GiB, with control groups in files."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.proc, self.cgroups = root / "proc", root / "cgroup"
        (self.proc / "self").mkdir(parents=True)
        total = SimpleNamespace(total=8 * 2**30)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: total)

    def groups(self, *lines: str) -> None:
        (self.proc / "self" / "cgroup").write_text("\n".join(lines) + "\n")

    def limit(self, file: str, value: str) -> None:
        path = self.cgroups / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(value + "\n")

    def memory(self) -> int | None:
        return cpu_memory(self.proc, self.cgroups)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_a_machine_without_control_groups_has_all_its_memory(machine: Machine) -> None:
    assert machine.memory() == 8 * 2**30


@pytest.mark.parametrize(
    ("groups", "limits", "bytes_"),
    [
        (["0::/"], {"memory.max": 2**30}, 2**30),
        (
            ["0::/pod/container"],
            {
                "pod/container/memory.max": "max",
                "pod/memory.max": 3 * 2**30,
                "memory.max": 4 * 2**30,
            },
            3 * 2**30,
        ),
        # The container sees its own group as the root, and the host's path in /proc.
        (
            ["5:cpu,cpuacct:/x", "4:memory:/docker/abc", "0::/"],
            {"memory/memory.limit_in_bytes": 2**31},
            2**31,
        ),
        # The kernel's number for "no limit".
        (["4:memory:/"], {"memory/memory.limit_in_bytes": 9223372036854771712}, 8 * 2**30),
    ],
    ids=["container", "least of the parents", "version 1", "no limit"],
)
def test_the_memory_is_that_of_the_machine_or_of_its_least_control_group(
    machine: Machine, groups: list[str], limits: dict[str, int | str], bytes_: int
) -> None:
    machine.groups(*groups)
    for file, value in limits.items():
        machine.limit(file, str(value))
    assert machine.memory() == bytes_


class Driver:
    """The functions of :mod:`pynvml` that are used, for two GPUs and a part of one."""

    def __init__(self) -> None:
        self.open = 0
        self.uuids = ["GPU-aa11", "GPU-bb22"]
        self.sizes_mib = {"GPU-aa11": 81559, "GPU-bb22": 40960, "MIG-cc33": 20096}

    def init(self) -> None:
        self.open += 1

    def shutdown(self) -> None:
        self.open -= 1

    def by_index(self, index: int) -> str:
        if index >= len(self.uuids):
            raise pynvml.NVMLError(pynvml.NVML_ERROR_INVALID_ARGUMENT)
        return self.uuids[index]

    def by_uuid(self, uuid: str) -> str:
        if uuid not in self.sizes_mib:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_FOUND)
        return uuid


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    driver = Driver()
    for name, function in {
        "nvmlInit": driver.init,
        "nvmlShutdown": driver.shutdown,
        "nvmlDeviceGetCount": lambda: len(driver.uuids),
        "nvmlDeviceGetHandleByIndex": driver.by_index,
        "nvmlDeviceGetHandleByUUID": driver.by_uuid,
        "nvmlDeviceGetUUID": lambda uuid: uuid,
        "nvmlDeviceGetMemoryInfo": lambda uuid: SimpleNamespace(total=driver.sizes_mib[uuid] * MIB),
    }.items():
        monkeypatch.setattr(pynvml, name, function)
    return driver


@pytest.mark.parametrize(
    ("visible", "mib"),
    [
        ("", 81559),
        ("1", 40960),
        ("1,0", 40960),
        ("GPU-aa", 81559),
        ("GPU-bb", 40960),
        ("MIG-cc33", 20096),
        ("MIG-dd44", None),
        ("7", None),
    ],
)
def test_the_gpu_is_the_first_that_is_visible(
    monkeypatch: pytest.MonkeyPatch, driver: Driver, visible: str, mib: int | None
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_memory() == (None if mib is None else mib * MIB)
    assert driver.open == 0


def test_without_an_answer_from_the_driver_the_gpu_is_unknown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def init() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", init)
    assert gpu_memory() is None
