from __future__ import annotations

import os
import sys
from pathlib import Path

import psutil
import pytest

from loadtests.processes import (
    Child,
    ServerFailed,
    alive,
    cpu_seconds,
    divided,
    output,
    pin,
    tree,
    until,
    usage,
)

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
        child.pause()  # a stopped one must end too
    assert await until(lambda: gone(started), 60.0)


async def gone(processes: list[psutil.Process]) -> bool:
    return not any(alive(process) for process in processes)


@pytest.mark.parametrize(
    ("code", "timeout_s", "reason"),
    [
        ("import os, sys; sys.exit(f'{os.environ}')", 60.0, "'BENCH': 'x'"),
        ("import time; time.sleep(600)", 0.0, "did not get ready"),
    ],
)
async def test_a_child_that_does_not_get_ready_says_why(
    tmp_path: Path, code: str, timeout_s: float, reason: str
) -> None:
    async def never() -> bool:
        return False

    child = python(code, tmp_path / "log")
    assert "HOME" not in child.environment
    with pytest.raises(ServerFailed, match=reason):
        async with child:
            await child.until(never, timeout_s)


def test_server_and_generator_have_cores_of_their_own() -> None:
    assert divided([0, 1]) == ([1], [0])
    assert divided([5, 2, 3]) == ([5], [2, 3])
    assert divided([0]) is None


async def test_a_process_is_pinned_with_all_its_threads(tmp_path: Path) -> None:
    code = "import threading, time; threading.Thread(target=time.sleep, args=(600,)).start()"
    async with python(code, tmp_path / "log") as child:
        (process,) = tree(child.pid)

        async def has_threads() -> bool:
            return len(process.threads()) == 2

        await child.until(has_threads, 60.0)
        core = min(os.sched_getaffinity(0))
        pin(child.pid, [core])
        assert [os.sched_getaffinity(thread.id) for thread in process.threads()] == [{core}] * 2


async def test_a_busy_process_computes_and_a_paused_one_does_not(tmp_path: Path) -> None:
    async with python("while True: pass", tmp_path / "busy") as busy:

        async def computes() -> bool:
            return cpu_seconds(busy.pid) > before

        before = 0.0
        await busy.until(computes, 60.0)
        busy.pause()
        before = cpu_seconds(busy.pid)
        # A tick may be counted late.
        assert cpu_seconds(busy.pid) - before < 0.5
        busy.resume()
        await busy.until(computes, 60.0)


async def test_the_resources_of_a_process(tmp_path: Path) -> None:
    async with python("import time; time.sleep(600)", tmp_path / "log") as child:
        (process,) = tree(child.pid)
        held = usage(process)
        assert held is not None
        assert held.rss_bytes > 0
        assert held.threads == 1
        child.pause()
        assert alive(process)
    assert not alive(process)
    assert usage(process) is None
    assert tree(child.pid) == []


async def test_the_output_of_a_program_or_the_reason_why_there_is_none() -> None:
    assert await output(sys.executable, "-c", "print(1)", timeout_s=60.0, cores=[0]) == b"1\n"
    with pytest.raises(ServerFailed, match="no luck"):
        await output(sys.executable, "-c", "raise SystemExit('no luck')", timeout_s=60.0)
    with pytest.raises(ServerFailed, match="longer than"):
        await output(sys.executable, "-c", "import time; time.sleep(60)", timeout_s=0.1)
