from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from loadtests.bench.child import Child, CpuShare, divided, pin, send, tree
from loadtests.bench.peer import PeerFailed
from loadtests.processes import Process
from loadtests.target import until

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("started", flush=True)
child.wait()
"""


def python(code: str, log: Path) -> Child:
    return Child([sys.executable, "-c", code], log, {"BENCH": "x", "HOME": None})


async def test_what_a_child_has_started_ends_with_it(tmp_path: Path) -> None:
    async with python(PARENT, tmp_path / "log") as child:

        async def has_started() -> bool:
            return "started" in child.tail()

        await child.until(has_started, 60.0)
        started = tree(child.pid)
        assert len(started) == 2
        send(child.pid, signal.SIGSTOP)  # a stopped one must end too
    assert await until(lambda: gone(started), 60.0)


async def gone(processes: list[Process]) -> bool:
    return not any(process.alive for process in processes)


async def test_a_child_that_ends_early_says_why(tmp_path: Path) -> None:
    async def never() -> bool:
        return False

    with pytest.raises(PeerFailed, match="no home, x"):
        async with python(
            "import os, sys; sys.exit('no home, x' if 'HOME' not in os.environ else 'home')",
            tmp_path / "log",
        ) as child:
            await child.until(never, 60.0)


async def test_waiting_for_a_child_ends_with_the_patience(tmp_path: Path) -> None:
    async def never() -> bool:
        return False

    async with python("import time; time.sleep(600)", tmp_path / "log") as child:
        with pytest.raises(PeerFailed, match="did not get ready"):
            await child.until(never, 0.0)


async def test_a_child_that_was_not_started_can_be_closed(tmp_path: Path) -> None:
    child = python("", tmp_path / "log")
    await child.close()
    with pytest.raises(PeerFailed, match="not been started"):
        _ = child.pid


def test_server_and_generator_have_cores_of_their_own() -> None:
    assert divided([0, 1]) == ([1], [0])
    assert divided([5, 2, 3]) == ([5], [2, 3])
    assert divided([0]) is None


def threads(pid: int) -> list[int]:
    return [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]


async def test_a_process_is_pinned_with_all_its_threads(tmp_path: Path) -> None:
    code = "import threading, time; threading.Thread(target=time.sleep, args=(600,)).start()"
    async with python(code, tmp_path / "log") as child:

        async def has_threads() -> bool:
            return len(threads(child.pid)) == 2

        await child.until(has_threads, 60.0)
        core = min(os.sched_getaffinity(0))
        pin(child.pid, [core])
        assert {frozenset(os.sched_getaffinity(t)) for t in threads(child.pid)} == {
            frozenset({core})
        }


async def test_a_busy_process_computes_and_a_stopped_one_does_not(tmp_path: Path) -> None:
    async with (
        python("while True: pass", tmp_path / "busy") as busy,
        python("while True: pass", tmp_path / "stopped") as stopped,
    ):
        send(stopped.pid, signal.SIGSTOP)
        computing, still = CpuShare(busy.pid, whole=True), CpuShare(stopped.pid)

        async def has_computed() -> bool:
            return computing.read() > 0.0

        await busy.until(has_computed, 60.0)
        # A tick may have been counted late.
        assert still.read() < 0.5
        send(stopped.pid, signal.SIGCONT)

        async def goes_on() -> bool:
            return still.read() > 0.0

        await stopped.until(goes_on, 60.0)
