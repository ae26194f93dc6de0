"""The keys in force, and the file that they are read from again when it changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from structlog.testing import capture_logs

from service.security import keyring
from service.security.api_keys import Key, digest_of, new_key
from service.security.keyring import MAX_BYTES, KeyMetrics, KeyRing, KeysFileInvalid
from tests.support.waiting import until

OLD, NEW, ADMIN = new_key(), new_key(), "correct horse battery"


class Watched:
    """A file of keys and the ring that follows it."""

    def __init__(self, folder: Path, *, admin: str | None = None) -> None:
        self.path = folder / "keys.json"
        self.registry = CollectorRegistry()
        self.ring = KeyRing(
            admin=None if admin is None else SecretStr(admin),
            file=self.path,
            metrics=KeyMetrics(self.registry),
        )

    def write(self, **keys: str) -> None:
        self.path.write_text(
            json.dumps(
                [
                    {"name": n, "sha256": digest_of(k.encode()).hex(), "scopes": ["rewrite"]}
                    for n, k in keys.items()
                ]
            )
        )

    def found(self, key: str) -> str | None:
        one = self.ring.find(key.encode())
        return one.name if one is not None else None

    def sample(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)

    def reads(self, result: str) -> float | None:
        return self.sample("requery_api_keys_file_reads_total", result=result)


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def test_without_keys_nothing_is_configured() -> None:
    ring = KeyRing(metrics=KeyMetrics(CollectorRegistry()))
    ring.load()
    assert not ring.poll()
    assert (ring.configured, ring.guards_all, ring.keys) == (False, False, ())


def test_the_admin_key_alone_leaves_rewriting_open() -> None:
    ring = KeyRing(admin=SecretStr(ADMIN), metrics=KeyMetrics(CollectorRegistry()))
    assert (ring.configured, ring.guards_all) == (True, False)
    assert [key.name for key in ring.keys] == ["admin"]
    assert ADMIN not in repr(vars(ring))


def test_a_key_is_rotated_without_a_moment_in_which_none_is_good(watched: Watched) -> None:
    watched.write(old=OLD)
    watched.ring.load()
    assert (watched.ring.configured, watched.ring.guards_all) == (True, True)
    watched.write(old=OLD, new=NEW)
    assert watched.ring.poll()
    assert (watched.found(OLD), watched.found(NEW)) == ("old", "new")
    watched.write(new=NEW)
    assert watched.ring.poll()
    assert (watched.found(OLD), watched.found(NEW)) == (None, "new")


def test_the_admin_key_stays_beside_those_of_the_file(tmp_path: Path) -> None:
    watched = Watched(tmp_path, admin=ADMIN)
    watched.write(old=OLD)
    watched.ring.load()
    watched.write()
    watched.ring.poll()
    assert (watched.found(ADMIN), watched.found(OLD)) == ("admin", None)


async def test_the_file_is_followed_until_the_service_stops(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keyring, "_POLL_S", 0.001)
    watched.write(old=OLD)
    watched.ring.load()
    async with watched.ring.followed():
        watched.write(new=NEW)
        await until(lambda: watched.found(NEW) == "new")
    watched.write(old=OLD)
    assert watched.found(OLD) is None


@pytest.mark.parametrize(
    "content",
    [None, "", "[{]", json.dumps([{"name": OLD}])],
    # A random key in a test's name would be another one in each process that runs the tests.
    ids=["missing", "empty", "malformed", "key for a name"],
)
def test_a_bad_file_ends_the_start_with_one_line(watched: Watched, content: str | None) -> None:
    if content is not None:
        watched.path.write_text(content)
    with pytest.raises(KeysFileInvalid) as caught:
        watched.ring.load()
    message = str(caught.value)
    assert str(watched.path) in message
    assert "requery keys check" in message
    assert OLD not in message
    assert "\n" not in message


def test_a_bad_change_is_told_once_and_the_last_good_keys_stay(watched: Watched) -> None:
    watched.write(old=OLD)
    watched.ring.load()
    with capture_logs() as logs:
        watched.path.write_text(json.dumps([{"name": "new", "sha256": NEW, "scopes": ["admin"]}]))
        assert [watched.ring.poll() for _ in range(3)] == [False] * 3
        assert (watched.found(OLD), watched.found(NEW)) == ("old", None)
        (line,) = logs
        assert (line["event"], line["log_level"]) == ("keys_file_refused", "error")
        assert "entry 1, sha256" in line["reason"]
        assert watched.reads("refused") == 1
        watched.path.unlink()
        assert [watched.ring.poll() for _ in range(3)] == [False] * 3
        assert watched.found(OLD) == "old"
        assert watched.reads("refused") == 2
        watched.write(new=NEW)
        assert watched.ring.poll()
        assert (watched.found(OLD), watched.found(NEW)) == (None, "new")
        assert watched.ring.problem is None
    assert [line["event"] for line in logs] == [
        "keys_file_refused", "keys_file_refused", "keys_file_mended", "keys_file_read",
    ]  # fmt: skip
    assert NEW not in str(logs)
    assert watched.reads("ok") == 2


def test_a_file_without_end_is_not_read(watched: Watched) -> None:
    watched.write(old=OLD)
    watched.ring.load()
    with watched.path.open("wb") as huge:
        huge.truncate(MAX_BYTES + 1)
    watched.ring.poll()
    assert watched.ring.problem is not None
    assert "at most" in watched.ring.problem
    assert watched.found(OLD) == "old"


def test_whatever_goes_wrong_following_goes_on(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched.write(old=OLD)
    watched.ring.load()

    def broken(*_: Any) -> tuple[Key, ...]:
        raise RuntimeError(OLD)

    with monkeypatch.context() as patch:
        patch.setattr(keyring, "read_keys", broken)
        watched.write(new=NEW)
        assert not watched.ring.poll()
    assert watched.ring.problem == "RuntimeError"
    assert watched.found(OLD) == "old"


def test_uses_are_counted_by_names_that_the_file_bounds(watched: Watched) -> None:
    name = "requery_api_key_uses_total"
    watched.write(old=OLD)
    watched.ring.load()
    metrics = watched.ring._metrics
    (key,) = watched.ring.keys
    metrics.used(key)
    metrics.used(key)
    assert watched.sample(name, key="old") == 2
    watched.write(new=NEW)
    watched.ring.poll()
    assert watched.sample(name, key="old") is None
    assert watched.sample(name, key="new") == 0
