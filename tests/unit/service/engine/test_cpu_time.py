from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from service.engine.cpu_time import cpu_seconds


@pytest.fixture
def busy() -> Iterator[subprocess.Popen[bytes]]:
    """A process that computes."""
    code = "import sys; sys.stdout.write('x'); sys.stdout.flush()\nwhile True: pass"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(1) == b"x"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def test_it_grows_while_a_process_computes_and_stands_still_while_it_is_stopped(
    busy: subprocess.Popen[bytes],
) -> None:
    start = cpu_seconds(busy.pid)
    while cpu_seconds(busy.pid) <= start:  # the test's own timeout bounds it
        pass
    os.kill(busy.pid, signal.SIGSTOP)
    os.waitpid(busy.pid, os.WUNTRACED)
    stopped = cpu_seconds(busy.pid)
    # As much as it would have taken to grow, at least.
    own = cpu_seconds(os.getpid())
    while cpu_seconds(os.getpid()) < own + 0.1:
        pass
    assert cpu_seconds(busy.pid) == stopped


def test_one_that_is_gone_has_none() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    assert cpu_seconds(process.pid) == 0
