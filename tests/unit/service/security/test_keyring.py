"""The keys in force, and the file that they are read from again when it changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from structlog.testing import capture_logs

from service.config import watched_file
from service.config.watched_file import FileInvalid
from service.security.api_keys import entry, new_key
from service.security.keyring import KeyRing
from service.security.metrics import KeyMetrics
from tests.support.waiting import turns, until

OLD, NEW, ADMIN = new_key(), new_key(), "correct horse battery"


class Watched:
    """A file of keys and the ring that follows it."""

    def __init__(self, folder: Path, *, admin: str | None = None) -> None:
        self.path = folder / "keys.yaml"
        self.registry = CollectorRegistry()
        self.metrics = KeyMetrics(self.registry)
        secret = None if admin is None else SecretStr(admin)
        self.ring = KeyRing(admin=secret, file=self.path, metrics=self.metrics)

    def write(self, **keys: str) -> None:
        self.path.write_text("".join(entry(n, k, ["rewrite"]) for n, k in keys.items()))

    def found(self, *keys: str) -> list[str | None]:
        found = [self.ring.find(key.encode()) for key in keys]
        return [None if one is None else one.name for one in found]

    def reads(self, result: str) -> float | None:
        name = "requery_api_keys_file_reads_total"
        return self.registry.get_sample_value(name, {"result": result})

    def uses(self, key: str) -> float | None:
        return self.registry.get_sample_value("requery_api_key_uses_total", {"key": key})


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    monkeypatch.setattr(watched_file, "POLL_S", 0.001)
    watched = Watched(tmp_path)
    watched.write(old=OLD)
    watched.ring.load()
    return watched


def test_without_keys_nothing_is_configured() -> None:
    ring = KeyRing(metrics=KeyMetrics(CollectorRegistry()))
    ring.load()
    assert (ring.configured, ring.guards_all, ring.keys) == (False, False, ())


def test_the_admin_key_alone_leaves_rewriting_open() -> None:
    ring = KeyRing(admin=SecretStr(ADMIN), metrics=KeyMetrics(CollectorRegistry()))
    assert (ring.configured, ring.guards_all) == (True, False)
    assert [key.name for key in ring.keys] == ["admin"]
    assert ADMIN not in repr(vars(ring))


async def test_during_a_rotation_there_is_always_a_valid_key(watched: Watched) -> None:
    assert (watched.ring.configured, watched.ring.guards_all) == (True, True)
    async with watched.ring.followed():
        watched.write(old=OLD, new=NEW)
        await until(lambda: watched.found(OLD, NEW) == ["old", "new"])
        watched.write(new=NEW)
        await until(lambda: watched.found(OLD, NEW) == [None, "new"])
    watched.write(old=OLD)
    await turns()
    assert watched.found(OLD) == [None], "it is followed only while the service runs"


def test_the_admin_key_stays_beside_those_of_the_file(tmp_path: Path) -> None:
    watched = Watched(tmp_path, admin=ADMIN)
    watched.write(old=OLD)
    watched.ring.load()
    assert watched.found(ADMIN, OLD, NEW) == ["admin", "old", None]


@pytest.mark.parametrize(
    "content",
    [None, "", "[{]", json.dumps([{"name": OLD}])],
    # A random key in a test's name would be another one in each process that runs the tests.
    ids=["missing", "empty", "malformed", "key for a name"],
)
def test_a_bad_file_ends_the_start_with_one_line(tmp_path: Path, content: str | None) -> None:
    watched = Watched(tmp_path)
    if content is not None:
        watched.path.write_text(content)
    with pytest.raises(FileInvalid) as caught:
        watched.ring.load()
    message = str(caught.value)
    assert str(watched.path) in message
    assert "requery keys check" in message
    assert OLD not in message
    assert "\n" not in message


async def test_a_bad_change_is_logged_once_and_the_last_good_keys_stay(watched: Watched) -> None:
    with capture_logs() as logs:
        async with watched.ring.followed():
            watched.path.write_text(json.dumps([{"name": "new", "sha256": NEW, "scopes": ["x"]}]))
            await until(lambda: watched.reads("refused") == 1)
            assert watched.found(OLD, NEW) == ["old", None]
            watched.path.unlink()
            await until(lambda: watched.reads("refused") == 2)
            assert watched.found(OLD) == ["old"]
            watched.write(new=NEW)
            await until(lambda: watched.found(OLD, NEW) == [None, "new"])
    events = [line["event"] for line in logs]
    assert events == [
        "keys_file_refused", "keys_file_refused", "keys_file_mended", "keys_file_read",
    ]  # fmt: skip
    assert "entry 1, sha256" in logs[0]["reason"]
    assert NEW not in str(logs)
    assert watched.reads("ok") == 2


async def test_uses_are_counted_by_names_that_the_file_bounds(watched: Watched) -> None:
    watched.metrics.used("old")
    watched.metrics.used("old")
    assert watched.uses("old") == 2
    async with watched.ring.followed():
        watched.write(new=NEW)
        await until(lambda: watched.uses("new") == 0)
    assert watched.uses("old") is None
