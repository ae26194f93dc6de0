"""``requery precompute`` on the command line: what it says, and how it ends."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from service.precompute.command import precompute
from tests.support.model_versions import write_full_version
from tests.support.redis_server import free_port

APP = typer.Typer()
APP.command()(precompute)


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_full_version(tmp_path / "models" / "full-1")
    monkeypatch.setenv("REQUERY_MODEL_SOURCES", str(tmp_path / "models"))
    monkeypatch.setenv("REQUERY_DEFAULT_VERSION", "full-1")


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "queries.csv"
    path.write_text("query,count\nsteele stake,2\n")
    return path


def requery(*arguments: object) -> Result:
    return CliRunner().invoke(APP, [str(one) for one in arguments])


def refusal(*arguments: object, code: int = 1) -> str:
    """The one line on standard error."""
    done = requery(*arguments)
    assert done.exit_code == code, done.output
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("requery: ")
    return line


def test_without_redis_or_a_service_there_is_nowhere_to_write(log: Path) -> None:
    line = refusal(log)
    assert "REQUERY_REDIS_URL" in line
    assert "--url" in line


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert "there is no such file" in refusal(tmp_path / "no.csv")


@pytest.mark.parametrize(
    "options",
    [
        ("--rate", "3"),
        ("--keep-case",),
        ("--url", "http://localhost:1", "--concurrency", "3"),
        ("--format", "excel"),
        ("--delimiter", ";;"),
        ("--format", "tsv", "--delimiter", ";"),
    ],
)
def test_options_that_do_not_go_together(log: Path, options: tuple[str, ...]) -> None:
    assert options[-2 if len(options) > 1 else 0] in refusal(log, *options, code=2)


@pytest.mark.parametrize(("given", "written"), [("^", "^"), ("tab", "\t")])
def test_a_delimiter_makes_the_file_csv(tmp_path: Path, given: str, written: str) -> None:
    path = tmp_path / "queries.txt"
    path.write_text("query^count\nsteele stake^2\n".replace("^", written))
    assert "line 1" in refusal(path)
    assert "REQUERY_REDIS_URL" in refusal(path, "--delimiter", given)


def test_a_setting_that_is_none(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUERY_CACHE_TTL_S", "-1")
    assert "REQUERY_CACHE_TTL_S" in refusal(log, code=2)


def test_a_port_that_is_a_service_link_of_kubernetes(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUERY_PORT", "tcp://10.0.0.1:80")
    done = requery(log)
    assert done.exit_code == 1  # for want of a Redis or a service
    note, reason = done.stderr.splitlines()
    assert "REQUERY_PORT" in note
    assert "REQUERY_REDIS_URL" in reason


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://x", "http://", "http://[", "http://a:b"])
def test_an_address_that_is_none(log: Path, url: str) -> None:
    assert "--url" in refusal(log, "--url", url)


def test_a_service_that_is_not_there(log: Path) -> None:
    assert "does not answer (" in refusal(log, "--url", f"http://127.0.0.1:{free_port()}")
    assert not log.with_name("queries.csv.journal").exists()


@pytest.mark.usefixtures("models")
def test_a_redis_that_is_not_there(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUERY_REDIS_URL", f"redis://127.0.0.1:{free_port()}")
    assert "Redis does not answer at REQUERY_REDIS_URL" in refusal(log)


@pytest.mark.usefixtures("models")
@pytest.mark.parametrize(
    ("url", "version", "said"),
    [
        ("redis://[", "full-1", "REQUERY_REDIS_URL: the Redis URL is malformed"),
        ("redis://127.0.0.1:1", "nobody", "'nobody'"),
    ],
)
def test_a_redis_url_or_version_that_is_none(
    log: Path, monkeypatch: pytest.MonkeyPatch, url: str, version: str, said: str
) -> None:
    monkeypatch.setenv("REQUERY_REDIS_URL", url)
    assert said in refusal(log, "--version-name", version)


@pytest.mark.usefixtures("models")
def test_a_journal_of_another_input(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUERY_REDIS_URL", f"redis://127.0.0.1:{free_port()}")
    requery(log)
    log.write_text("query,count\nsteele stake,3\n")
    line = refusal(log)
    assert "another input" in line
    assert "--journal" in line


@pytest.mark.usefixtures("models")
def test_nothing_that_can_be_rewritten(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REQUERY_REDIS_URL", "redis://127.0.0.1:1")
    log.write_text(f"query\n{'x' * 300}\n")
    assert "none of the queries can be rewritten" in refusal(log)
