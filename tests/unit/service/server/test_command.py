from __future__ import annotations

import errno
import os
import resource
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model_store.errors import BaseNotFound
from service.errors import LoadFailed
from service.server import command as serve


class Limits:
    """Limits of a process that is not ours."""

    def __init__(self, soft: int, hard: int) -> None:
        self.soft, self.hard = soft, hard

    def getrlimit(self, _which: int) -> tuple[int, int]:
        return self.soft, self.hard

    def setrlimit(self, _which: int, limits: tuple[int, int]) -> None:
        assert limits[1] == self.hard
        self.soft = limits[0]


INFINITE = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "granted", "afterwards"),
    [
        (1024, 20_000, 5000, 5000),
        (1024, 4096, 4096, 4096),
        (1024, INFINITE, 5000, 5000),
        (8000, 20_000, 5000, 8000),
        (INFINITE, INFINITE, 5000, INFINITE),
    ],
)
def test_the_process_may_open_what_it_needs_as_far_as_it_is_let(
    soft: int, hard: int, granted: int, afterwards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(soft, hard)
    monkeypatch.setattr(resource, "getrlimit", limits.getrlimit)
    monkeypatch.setattr(resource, "setrlimit", limits.setrlimit)
    assert serve._allow_descriptors(5000) == granted
    assert limits.soft == afterwards


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (LoadFailed("no memory"), "version a-1 cannot be served: no memory", 1),
        (BaseNotFound("no base"), "version a-1 cannot be served: no base", 1),
        (serve._CannotServe("odd option", 2), "odd option", 2),
        (KeyError("x"), "version a-1 cannot be served: KeyError: 'x' (see the log)", 1),
    ],
)
def test_what_is_said_of_a_failure(error: Exception, line: str, code: int) -> None:
    assert serve._reason(error, "a-1") == (line, code)


def test_a_name_that_is_no_address(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        serve._listen("no such host", 0)
    assert ended.value.code == 1
    assert "--host" in capsys.readouterr().err


def test_a_port_that_nobody_may_take(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refused)
    with pytest.raises(SystemExit):
        serve._listen("127.0.0.1", 80)
    assert "port 80: Permission denied" in capsys.readouterr().err


LEAVING = """
import atexit, sys
from service.server.command import _leave_at_once

class Slow:
    def __del__(self):
        print("taken apart", flush=True)

slow = Slow()
slow.itself = slow
atexit.register(print, "registered")
print("said", end=" ")
_leave_at_once()
"""


def leave(**streams: Any) -> subprocess.CompletedProcess[str]:
    buffered = {**os.environ, "PYTHONUNBUFFERED": ""}
    command = [sys.executable, "-c", LEAVING]
    return subprocess.run(command, env=buffered, check=False, text=True, timeout=120, **streams)


def test_a_process_that_has_stopped_leaves_nothing_unsaid_and_does_not_take_itself_apart() -> None:
    left = leave(capture_output=True)
    assert (left.returncode, left.stdout, left.stderr) == (0, "said registered\n", "")


def test_output_that_cannot_be_written_shows_in_the_exit_code() -> None:
    with Path("/dev/full").open("w") as full:
        assert leave(stdout=full).returncode == 120
