"""``requery rewrite``: what it asks, what it prints, and one line for what goes wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from model_store.manifest import Manifest
from model_store.store import Store
from service.config.settings import Settings
from service.engine.protocol import Engine
from service.server import ask_command
from service.versions import from_store
from service.versions.version import EngineFactory, OnTokens
from tests.support.engine import ScriptedEngine
from tests.support.model_versions import write_full_version
from tests.support.redis_server import free_port

APP = typer.Typer()
APP.command()(ask_command.rewrite)
ANSWER = {
    "query": "garden hoze", "status": "ok", "source": "engine", "model_version": "full-1",
    "rewrites": [{"text": "garden hose", "relevance": 0.987}],
}  # fmt: skip


class Service:
    """A service on loopback that gives one answer."""

    def __init__(self) -> None:
        self.status, self.body = 200, json.dumps(ANSWER)
        self.asked: list[tuple[str, dict[str, Any], str | None]] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["content-length"])
                body = json.loads(self.rfile.read(length))
                service.asked.append((self.path, body, self.headers["authorization"]))
                self.send_response(service.status)
                self.end_headers()
                self.wfile.write(service.body.encode())

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REQUERY_API_KEY", raising=False)


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    yield made
    made.close()


def requery(*arguments: str) -> Result:
    return CliRunner().invoke(APP, ["garden hoze", *arguments])


def test_a_running_service_is_asked(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUERY_API_KEY", "rq_1")
    done = requery("--url", service.url, "--max-rewrites", "2", "--min-relevance", "0.5",
                   "--version", "full-1")  # fmt: skip
    assert (done.exit_code, done.stdout, done.stderr) == (0, "0.99  garden hose\n", "")
    ((path, body, key),) = service.asked
    assert (path, key) == ("/rewrite", "Bearer rq_1")
    body.pop("deadline_ms")
    assert body == {
        "query": "garden hoze", "max_rewrites": 2, "min_relevance": 0.5, "model_version": "full-1",
    }  # fmt: skip
    assert json.loads(requery("--url", service.url, "--json").stdout) == ANSWER


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (401, "{}", "needs an API key"),
        (403, "{}", "does not allow"),
        (404, '{"detail": "version x is not served"}', "version x is not served"),
        (404, "<html>", "does not answer as Requery does"),
        (200, "[]", "does not answer as Requery does"),
    ],
)
def test_what_it_does_not_answer_is_one_line(
    service: Service, status: int, body: str, said: str
) -> None:
    service.status, service.body = status, body
    done = requery("--url", service.url)
    assert (done.exit_code, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("requery: ")
    assert said in line


def test_a_service_that_was_named_is_not_replaced() -> None:
    done = requery("--url", f"http://127.0.0.1:{free_port()}")
    assert (done.exit_code, done.stdout) == (1, "")
    assert "does not answer" in done.stderr


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedEngine:
    """No service, and a scripted engine of the default version."""
    engine = ScriptedEngine()

    def factory(_store: Store, _settings: Settings) -> EngineFactory:
        async def make(_manifest: Manifest, _on_tokens: OnTokens) -> Engine:
            return engine

        return make

    write_full_version(tmp_path / "models" / "full-1")
    monkeypatch.setenv("REQUERY_MODEL_SOURCES", str(tmp_path / "models"))
    monkeypatch.setenv("REQUERY_DEFAULT_VERSION", "full-1")
    monkeypatch.setattr(from_store, "engine_factory", factory)
    monkeypatch.setattr(ask_command, "DEFAULT_URL", f"http://127.0.0.1:{free_port()}")
    return engine


def test_without_a_service_the_version_is_loaded_with_a_word_on_the_wait(
    engine: ScriptedEngine,
) -> None:
    done = requery("--json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["model_version"] == "full-1"
    assert engine.generated == [answer["query"]] == ["garden hoze"]
    assert answer["rewrites"]
    (line,) = done.stderr.splitlines()
    assert "loading version full-1 here, which takes up to a few minutes" in line


@pytest.mark.usefixtures("engine")
def test_limits_hold_without_a_service_too() -> None:
    assert len(requery("--max-rewrites", "1").stdout.splitlines()) == 1


@pytest.mark.usefixtures("engine")
def test_a_version_that_is_not_there_is_one_line() -> None:
    done = requery("--version", "nobody")
    assert (done.exit_code, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert "'nobody'" in line
