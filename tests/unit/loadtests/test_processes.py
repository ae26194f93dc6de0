from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from loadtests.processes import Process, descendants


@pytest.fixture
def child() -> Iterator[subprocess.Popen[bytes]]:
    """Waits for its standard input to be closed."""
    code = "import sys; print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "some (name)"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_what_a_process_holds(child: subprocess.Popen[bytes]) -> None:
    process = Process.of(child.pid)
    assert process is not None
    assert process.alive
    assert "some (name)" in process.name
    usage = process.usage()
    assert usage is not None
    assert usage.rss_bytes > 1024**2
    assert usage.descriptors >= 3
    assert usage.threads == 1


def test_descendants_hold_children(child: subprocess.Popen[bytes]) -> None:
    assert child.pid in [process.pid for process in descendants(os.getpid())]


def test_a_stopped_process_lives_and_a_killed_one_does_not(
    child: subprocess.Popen[bytes],
) -> None:
    process = Process.of(child.pid)
    assert process is not None
    process.send(signal.SIGSTOP)
    assert process.alive
    process.send(signal.SIGKILL)
    child.wait()
    assert not process.alive
    assert process.usage() is None
    assert process.name == ""
    assert Process.of(child.pid) is None
    process.send(signal.SIGKILL)  # nobody is hit


def test_another_process_of_the_same_number_is_another(child: subprocess.Popen[bytes]) -> None:
    process = Process.of(child.pid)
    assert process is not None
    assert not Process(process.pid, process.started - 1).alive
