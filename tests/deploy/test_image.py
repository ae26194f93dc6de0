"""The image itself: built, run without any privilege, and asked.

Building takes many minutes and root, so this is no part of ``make test``: ``make image`` builds
the image, and then runs this with ``REQUERY_TEST_IMAGE`` set to its name.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from service.security.api_keys import entry, new_key
from tests.deploy.image import KEYS, Image, request, unpacked
from tests.docs.blocks import ROOT
from tests.support.waiting import wait_until

IMAGE = os.environ.get("REQUERY_TEST_IMAGE", "")
PATIENCE_S = 900
"""Bounds a start on a slow, busy machine; nothing is asserted about it."""

pytestmark = [
    pytest.mark.skipif(not IMAGE, reason="`make image` sets REQUERY_TEST_IMAGE"),
    pytest.mark.timeout(3 * PATIENCE_S),
]


class Running(NamedTuple):
    """A container that is ready."""

    process: subprocess.Popen[bytes]
    key: str
    log: Path


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    storage = Path(os.environ.get("STORAGE", ROOT / "build/image")).resolve()
    with unpacked(IMAGE, storage, (storage / "driver").read_text().strip()) as found:
        yield found


@pytest.fixture(scope="module")
def running(image: Image, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    keys, log = tmp_path_factory.mktemp("keys"), tmp_path_factory.mktemp("log")
    key = new_key()
    (keys / "keys.yaml").write_text(entry("backend", key, ["rewrite"]))
    # As a folder of Kubernetes or Docker is: another user can read it.
    keys.chmod(0o755)
    process = image.start(
        image.command, keys, log, REQUERY_API_KEYS_FILE=f"{KEYS}/keys.yaml"
    )  # fmt: skip
    try:
        wait_until(
            lambda: request(process.pid, "/readyz")[0] == 200,
            alive=lambda: process.poll() is None,
            poll_s=0.5,
        )
        yield Running(process, key, log)
    finally:
        process.kill()
        process.wait()


def test_it_does_not_start_without_keys(image: Image, tmp_path: Path) -> None:
    process = image.start(image.command, tmp_path, tmp_path)
    assert process.wait(PATIENCE_S) == 2
    (line,) = (tmp_path / "err").read_text().splitlines()
    assert "REQUERY_API_KEYS_FILE" in line


def test_it_makes_keys(image: Image, tmp_path: Path) -> None:
    command = [*image.config["Entrypoint"], "keys", "new", "--name", "a", "--scope", "rewrite"]
    assert image.start(command, tmp_path, tmp_path).wait(PATIENCE_S) == 0
    assert "sha256" in (tmp_path / "out").read_text()


def test_it_answers_with_the_weights_of_the_image(running: Running) -> None:
    assert request(running.process.pid, "/rewrite", {"query": "steele stake"})[0] == 401
    answers = []
    for _ in range(2):
        body = {"query": "steele stake", "deadline_ms": 30_000}
        status, answer = request(running.process.pid, "/rewrite", body, running.key)
        assert (status, answer["status"]) == (200, "ok"), answer
        answers.append(answer)
    assert [answer["source"] for answer in answers] == ["engine", "memory"]
    assert answers[0]["rewrites"] == answers[1]["rewrites"] != []


def test_its_health_check_holds(image: Image, running: Running) -> None:
    kind, *command = image.config["Healthcheck"]["Test"]
    assert kind == "CMD"
    done = image.inside(running.process.pid, command)
    assert done.returncode == 0, done.stderr


def test_it_has_no_privilege(running: Running) -> None:
    text = (Path("/proc") / str(running.process.pid) / "status").read_text()
    status = {n: v.split() for n, _, v in (line.partition(":") for line in text.splitlines())}
    assert set(status["Uid"]) == set(status["Gid"]) == {"10001"}
    assert {int(status[name][0], 16) for name in ("CapEff", "CapPrm", "CapBnd")} == {0}
    assert status["NoNewPrivs"] == ["1"]


def test_it_ends_in_order_and_complains_of_nothing(running: Running) -> None:
    """The last one: nobody can ask it afterwards."""
    running.process.send_signal(signal.SIGTERM)
    assert running.process.wait(PATIENCE_S) == 0
    errors = (running.log / "err").read_text()
    for complaint in ("Read-only file system", "Permission denied", "No space left"):
        assert complaint not in errors, errors
    events = [json.loads(line) for line in (running.log / "out").read_text().splitlines()]
    # Some sandboxes allow a socket filter to root alone (service/server/graceful.py does without).
    told = {e["event"] for e in events if e["level"] not in ("info", "debug")}
    assert told <= {"no_socket_filter"}, events
