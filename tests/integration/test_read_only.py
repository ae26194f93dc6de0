"""The container's promises that need no container: what it writes, and as whom it runs.

``requery serve`` is started as the image starts it, on a machine of which nothing can be written
but the cache folder and a temporary one. Where this process may have a mount namespace of its own
the kernel sees to that; elsewhere at least the home folder is none.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.waiting import is_up, wait_until

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
PATIENCE_S = 900
"""Bounds a start that merges weights on a slow, busy machine; nothing is asserted about it."""

_READ_ONLY = """
set -e
mount --make-rprivate /
mount --bind "$REQUERY_CACHE_DIR" "$REQUERY_CACHE_DIR"
mount --bind "$TMPDIR" "$TMPDIR"
mount -o remount,bind,ro /
if touch "$0/written" 2>/dev/null; then exit 97; fi
exec setpriv --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
"""


def image_environment() -> dict[str, str]:
    """The variables that the Dockerfile sets for the service."""
    text = (ROOT / "Dockerfile").read_text().partition("AS runtime")[2].partition("\nFROM ")[0]
    joined = text.replace("\\\n", " ")
    pairs = [
        pair.split("=", 1)
        for line in re.findall(r"^ENV (.*)$", joined, re.MULTILINE)
        for pair in shlex.split(line)
    ]
    return {name: value for name, value in pairs if name != "PATH"}


def namespace_allowed() -> bool:
    tried = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    return os.geteuid() == 0 and tried.returncode == 0


def test_the_image_runs_as_nobody_special_and_says_how_to_run_it() -> None:
    text = (ROOT / "Dockerfile").read_text()
    runtime = text.partition("AS runtime")[2]
    assert re.search(r"useradd .*--uid 10001 requery", runtime)
    assert set(re.findall(r"^USER (.*)$", runtime, re.MULTILINE)) == {"10001:10001"}
    for option in (
        "--read-only", "--tmpfs /tmp", "--cap-drop ALL", "--security-opt no-new-privileges",
        "REQUERY_API_KEYS_FILE",
    ):  # fmt: skip
        assert option in text.partition("\nFROM ")[0]


def test_the_image_does_not_start_without_keys() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "serve"],
        cwd=ROOT,
        env=os.environ | {"REQUERY_HOST": image_environment()["REQUERY_HOST"]},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "REQUERY_API_KEYS_FILE" in line


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder with a short path: sockets are made in it, whose names have at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="rq-") as folder:
        yield Path(folder)


@pytest.mark.timeout(2 * PATIENCE_S)
def test_nothing_is_written_but_the_cache_and_temporary_files(
    tmp_path: Path, temporary: Path
) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    places = {"/var/cache/requery": str(cache), "/tmp": str(temporary)}
    image = {
        name: next((value.replace(a, b) for a, b in places.items() if value.startswith(a)), value)
        for name, value in image_environment().items()
    }
    environment = (
        {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
        | image
        # Below a file there can be nothing, not even for root.
        | {"HOME": "/dev/null/home", "REQUERY_PORT": "0", "REQUERY_ADMIN_KEY": "a key for the test"}
    )
    command = [sys.executable, "-m", "service.cli", "serve", "--host", "127.0.0.1"]
    if namespace_allowed():
        command = ["unshare", "-m", "sh", "-c", _READ_ONLY, str(tmp_path), *command]
    log, errors = tmp_path / "out", tmp_path / "err"
    with log.open("wb") as out, errors.open("wb") as err:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=out, stderr=err)
    try:
        with httpx.Client(timeout=60) as client:
            running = lambda: process.poll() is None  # noqa: E731 - a name for two uses
            wait_until(lambda: _port(log) is not None, alive=running)
            url = f"http://127.0.0.1:{_port(log)}"
            wait_until(lambda: is_up(client, f"{url}/readyz"), alive=running, poll_s=0.2)
            answer = client.post(
                f"{url}/rewrite", json={"query": "steele stake", "deadline_ms": 30_000}
            ).json()
        assert (answer["source"], answer["status"]) == ("engine", "ok")
        process.send_signal(signal.SIGTERM)
        process.wait(PATIENCE_S)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 0
    for complaint in ("Read-only file system", "Permission denied", "Not a directory"):
        assert complaint not in errors.read_text()
    assert not (tmp_path / "written").exists()


def _port(log: Path) -> int | None:
    for line in log.read_text().splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # it is being written
        if event["event"] == "listening":
            return int(event["port"])
    return None
