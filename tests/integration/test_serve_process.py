"""``requery serve`` as a real process: what it says when it cannot start, and while it loads."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from model_store.materialise import materialised_dir
from model_store.store import open_store
from tests.support.model_versions import write_full_version, write_stub_version
from tests.support.redis_server import free_port
from tests.support.waiting import is_up, wait_until

pytestmark = pytest.mark.integration

PATIENCE_S = 90
"""Bounds a process that should have ended; nothing is asserted about how long it took."""


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A store with one version, whose weights are no model."""
    root = tmp_path / "models"
    write_full_version(root / "full-1")
    return root


@pytest.fixture
def unused_models(tmp_path: Path) -> Path:
    """A folder that nobody knows of."""
    return tmp_path / "elsewhere"


def command(models: Path, *arguments: str, **settings: str) -> subprocess.Popen[str]:
    environment = {
        **os.environ,
        "REQUERY_MODEL_SOURCES": str(models),
        "REQUERY_CACHE_DIR": str(models.parent / "cache"),
        "REQUERY_DEFAULT_VERSION": "full-1",
        "REQUERY_PORT": "0",
        "REQUERY_SHUTDOWN_DELAY_S": "0",
        **settings,
    }
    return subprocess.Popen(
        [sys.executable, "-m", "service.cli", "serve", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def failure(models: Path, *arguments: str, **settings: str) -> tuple[int, str]:
    """Exit status and the one line on standard error; standard output must be JSON lines."""
    process = command(models, *arguments, **settings)
    try:
        out, err = process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.wait()
    for line in out.splitlines():
        assert "Traceback" not in str(json.loads(line))
    lines = err.splitlines()
    assert len(lines) == 1, err
    assert lines[0].startswith("requery: ")
    return process.returncode, lines[0]


def no_cache(models: Path) -> None:
    (models.parent / "cache").write_text("a file")


def no_manifest(models: Path) -> None:
    (models / "full-1" / "manifest.json").write_text('{"name": "full-1"}')


def no_weights(models: Path) -> None:
    (models / "full-1" / "model.safetensors").unlink()


def other_weights(models: Path) -> None:
    path = models / "full-1" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def no_base(models: Path) -> None:
    write_stub_version(models / "stub-1")


NOBODY = ("--version-name", "nobody")
# What a source that waits would wait for is longer than the test has.
FAILURES: dict[str, tuple[Any, tuple[str, ...], dict[str, str], int, tuple[str, ...]]] = {
    "an unknown version": (
        None, NOBODY, {"STORE_WAIT_S": "1"}, 1, ("'nobody'", "full-1", "--version-name")),
    "an unknown version of the package, which is not waited for": (
        None, NOBODY, {"MODEL_SOURCES": "", "STORE_WAIT_S": "100000"}, 1, ("'nobody'",)),
    "a source that does not come": (
        None, (), {"MODEL_SOURCES": "local:///nonexistent/later", "STORE_WAIT_S": "1"}, 1,
        ("/nonexistent/later",)),
    "a cache folder that cannot be written": (no_cache, (), {}, 1, ("cannot write",)),
    "a manifest that is none": (no_manifest, (), {}, 1, ("manifest.json",)),
    "missing weights": (no_weights, (), {}, 1, ("model.safetensors: is missing",)),
    "weights with a wrong digest": (other_weights, (), {}, 1, ("model.safetensors", "SHA-256")),
    "a base that is not there": (
        no_base, ("--version-name", "stub-1"), {}, 1, ("/nonexistent.gguf",)),
    "an address of another machine": (
        None, ("--host", "192.0.2.1"), {"SERVE_WITHOUT_KEYS": "to-anyone"}, 1, ("192.0.2.1",)),
    "a port that is no number": (None, (), {"PORT": "many"}, 2, ("REQUERY_PORT",)),
    "a URL without a scheme": (
        None, (), {"REDIS_URL": "localhost:6379"}, 2, ("REQUERY_REDIS_URL",)),
    "an unknown device": (None, (), {"DEVICE": "tpu"}, 2, ("REQUERY_DEVICE",)),
}  # fmt: skip
"""What is done to the model store, arguments, settings, exit status, and what the line says."""


@pytest.mark.parametrize(
    ("harm", "arguments", "settings", "expected", "said"), FAILURES.values(), ids=FAILURES
)
def test_a_start_that_fails_is_one_line_that_says_why(
    models: Path,
    harm: Callable[[Path], None] | None,
    arguments: tuple[str, ...],
    settings: dict[str, str],
    expected: int,
    said: tuple[str, ...],
) -> None:
    if harm is not None:
        harm(models)
    names = {f"REQUERY_{name}": value for name, value in settings.items()}
    code, line = failure(models, *arguments, **names)
    assert code == expected
    assert [word for word in said if word not in line] == []


@pytest.mark.parametrize("scheme", ["", "local://"])
def test_a_store_that_comes_late_is_waited_for(
    tmp_path: Path, unused_models: Path, scheme: str
) -> None:
    late = tmp_path / "volume"
    with running(late, REQUERY_MODEL_SOURCES=f"{scheme}{late}", REQUERY_STORE_WAIT_S="100000") as (
        client,
        process,
    ):
        assert client.get("/livez").json() == {"status": "live"}
        ready = client.get("/readyz")
        assert (ready.status_code, ready.headers["retry-after"]) == (503, "1")
        assert "model store" in ready.json()["detail"]
        assert client.post("/rewrite", json={"query": "a stake"}).status_code == 503
        # It is no model: that it is read and found wanting shows that it was waited for.
        write_full_version(unused_models / "full-1")
        (unused_models / "full-1" / "model.safetensors").unlink()
        unused_models.rename(late)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "model.safetensors" in err
    assert len(err.splitlines()) == 1
    waiting = [e for e in map(json.loads, out.splitlines()) if e["level"] == "warning"]
    assert {event["event"] for event in waiting} == {"waiting_for_the_model_store"}


def test_told_to_stop_while_it_waits_for_the_store_it_leaves(tmp_path: Path) -> None:
    with running(tmp_path / "later", REQUERY_STORE_WAIT_S="100000") as (_, process):
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert err == ""
    assert json.loads(out.splitlines()[-1])["event"] == "stopped"


def test_a_taken_port_shows_before_the_weights_are_read(models: Path) -> None:
    (models / "full-1" / "model.safetensors").unlink()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        code, line = failure(models, "--port", str(port))
    assert code == 1
    assert f"port {port}" in line
    assert "taken" in line
    assert "--port" in line


def test_while_the_model_loads_the_process_tells_the_truth_and_leaves_when_told(
    models: Path,
) -> None:
    with loading(models) as (client, process):
        assert client.get("/livez").status_code == 200
        ready = client.get("/readyz")
        assert (ready.status_code, ready.json()["detail"]) == (503, "version full-1 is loading")
        answer = client.post("/rewrite", json={"query": "steele stake"}).json()
        assert (answer["status"], answer["rewrites"]) == ("fallback", [])
        # A body that is far too long is refused without breaking the connection for others.
        large = client.post("/rewrite", json={"query": "x" * 1_000_000})
        assert large.status_code == 413
        assert client.get("/livez").status_code == 200
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert err == ""
    events = [json.loads(line) for line in out.splitlines()]
    assert {"listening", "request"} <= {event["event"] for event in events}


@contextmanager
def loading(models: Path, **settings: str) -> Iterator[tuple[httpx.Client, subprocess.Popen[str]]]:
    """A process that is kept loading: the test holds the lock that materialising waits for."""
    cache = models.parent / "cache"
    target = materialised_dir(open_store([str(models)], cache).get("full-1"), cache)
    target.parent.mkdir(parents=True)
    with target.with_name(f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with running(models, **settings) as (client, process):
            wait_until(lambda: is_up(client, "/versions"), alive=lambda: process.poll() is None)
            yield client, process


@contextmanager
def running(models: Path, **settings: str) -> Iterator[tuple[httpx.Client, subprocess.Popen[str]]]:
    """A process that answers ``/livez``."""
    port = free_port()
    process = command(models, "--port", str(port), **settings)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            wait_until(lambda: is_up(client, "/livez"), alive=lambda: process.poll() is None)
            yield client, process
    finally:
        process.kill()
        process.communicate()
