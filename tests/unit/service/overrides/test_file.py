"""The file of overrides: read at start, followed, and never a reason to stop."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from service.overrides.file import MAX_BYTES, OverridesFile, OverridesFileInvalid
from service.overrides.metrics import OverrideMetrics
from tests.support.overrides import BEFORE, NOW, World, block

YAML = """
overrides:
  # Quoted or not, a time needs its zone.
  - {kind: block_query, query: steele stake, author: ada, reason: wrong,
     expires_at: 2027-01-15T09:00:10+01:00}
  - kind: pin
    query: "2x4"
    rewrites: [two by four, 2 x 4 board]
    author: ada
    reason: better
    expires_at: "2027-01-15T08:00:10Z"
  - {id: no-guns, kind: block_term, term: gun, author: ada, reason: policy}
"""

ENTRY = "{kind: block_query, query: a, author: b, reason: c}"


class Watched:
    """A file and its reader."""

    def __init__(self, folder: Path, name: str = "overrides.yaml") -> None:
        self.path = folder / name
        self.registry = CollectorRegistry()
        self.reader = OverridesFile(self.path, metrics=OverrideMetrics(self.registry))

    def write(self, *contents: dict[str, Any]) -> None:
        self.path.write_text(json.dumps({"overrides": contents}))

    def reads(self, result: str) -> float | None:
        return self.registry.get_sample_value(
            "requery_override_file_reads_total", {"result": result}
        )

    def queries(self) -> list[str]:
        return [entry.subject for entry in self.reader.table.entries]


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def good(query: str) -> dict[str, Any]:
    return block(query, author="ada")


def test_yaml_is_read(watched: Watched) -> None:
    watched.path.write_text(YAML)
    watched.reader.load()
    first, second, third = watched.reader.table.entries
    assert first.expires == second.expires == NOW + 10
    assert third.id == "no-guns"
    assert [one.subject for one in (first, second, third)] == ["steele stake", "2x4", "gun"]


def test_json_is_read_and_an_entry_that_has_expired_is_no_mistake(tmp_path: Path) -> None:
    watched = Watched(tmp_path, "overrides.json")
    watched.write(good("a") | {"expires_at": BEFORE})
    watched.reader.load()
    assert watched.queries() == ["a"]
    assert list(World(file=watched.path).live.in_force()) == []


def test_an_entry_keeps_its_id_while_others_come_and_go(watched: Watched) -> None:
    watched.write(good("a"), good("b"))
    watched.reader.load()
    ids = {entry.subject: entry.id for entry in watched.reader.table.entries}
    watched.write(good("c"), good("B"))
    assert watched.reader.poll()
    after = {entry.subject: entry.id for entry in watched.reader.table.entries}
    assert after["b"] == ids["b"]
    assert len({*ids.values(), *after.values()}) == 3


MALFORMED: dict[str, tuple[str, str]] = {
    "not yaml": ("overrides: [", "is malformed"),
    "empty": ("", "one key 'overrides'"),
    "a list": ("- {kind: block_query}", "one key 'overrides'"),
    "another key": ("overrides: []\nrules: []", "one key 'overrides'"),
    "no list": ("overrides: none", "must be a list"),
    "no author": (
        f"overrides: [{ENTRY}, {{kind: block_query, query: b, reason: c}}]",
        "entry 2, author: is required",
    ),
    "no reason": ("overrides: [{kind: block_query, query: a, author: b}]", "entry 1, reason"),
    "a number": (
        "overrides: [{kind: block_query, query: 2024, author: a, reason: b}]",
        "entry 1, query: must be text (in YAML, put it in quotes)",
    ),
    "a text as entry": ("overrides: [gun]", "entry 1: must be an object"),
    "several mistakes": ("overrides: [gun, gun, gun]", "(and 2 more)"),
    "twice": (
        f"overrides: [{ENTRY}, {ENTRY}]",
        "entry 2, query: is the same as that of entry 1; keep",
    ),
    "python objects": ("overrides: !!python/object/apply:os.getcwd []", "is malformed"),
}


@pytest.mark.parametrize(("content", "said"), MALFORMED.values(), ids=MALFORMED.keys())
def test_a_malformed_file_ends_the_start_with_one_line(
    watched: Watched, content: str, said: str
) -> None:
    watched.path.write_text(content)
    with pytest.raises(OverridesFileInvalid) as caught:
        watched.reader.load()
    message = str(caught.value)
    assert str(watched.path) in message
    assert said in message
    assert "REQUERY_OVERRIDES_FILE" in message
    assert "\n" not in message


def test_a_file_that_is_not_there_or_has_another_name_ends_the_start(
    watched: Watched, tmp_path: Path
) -> None:
    with pytest.raises(OverridesFileInvalid, match="cannot be read"):
        watched.reader.load()
    other = Watched(tmp_path, "overrides.txt")
    other.write()
    with pytest.raises(OverridesFileInvalid, match="rename it"):
        other.reader.load()


def test_a_file_without_end_is_not_read(watched: Watched) -> None:
    watched.write(good("a"))
    watched.reader.load()
    with watched.path.open("wb") as huge:
        huge.truncate(MAX_BYTES + 1)
    watched.reader.poll()
    assert watched.reader.problem is not None
    assert "at most" in watched.reader.problem
    assert watched.queries() == ["a"]


def test_a_bad_change_is_told_once_and_the_last_good_state_stays(watched: Watched) -> None:
    watched.write(good("a"))
    watched.reader.load()
    with capture_logs() as logs:
        watched.write(good("a"), good("b") | {"query": ""})
        assert [watched.reader.poll() for _ in range(3)] == [False] * 3
        assert watched.queries() == ["a"]
        (line,) = logs
        assert (line["event"], line["log_level"]) == ("overrides_file_refused", "error")
        assert "entry 2, query" in line["reason"]
        assert watched.reads("refused") == 1
        watched.path.unlink()
        assert [watched.reader.poll() for _ in range(3)] == [False] * 3
        assert watched.queries() == ["a"]
        assert watched.reads("refused") == 2
        watched.write(good("c"))
        assert watched.reader.poll()
        assert watched.queries() == ["c"]
        assert watched.reader.problem is None
    assert [line["event"] for line in logs] == [
        "overrides_file_refused", "overrides_file_refused", "overrides_file_mended",
        "overrides_file_read",
    ]  # fmt: skip


def test_the_same_file_come_back_is_good_again(watched: Watched) -> None:
    watched.write(good("a"))
    watched.reader.load()
    aside = watched.path.with_suffix(".aside")
    watched.path.rename(aside)
    watched.reader.poll()
    assert watched.reader.problem is not None
    aside.rename(watched.path)
    watched.reader.poll()
    assert watched.reader.problem is None
    assert watched.queries() == ["a"]


def test_a_change_that_keeps_size_and_time_is_seen(watched: Watched) -> None:
    watched.write(good("a"))
    watched.reader.load()
    before = watched.path.stat()
    watched.write(good("b"))
    os.utime(watched.path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert watched.path.stat().st_mtime_ns == before.st_mtime_ns
    assert watched.reader.poll()
    assert watched.queries() == ["b"]


def test_a_file_that_has_long_been_as_it_is_is_not_read_again(watched: Watched) -> None:
    watched.write(good("a"))
    os.utime(watched.path, (1, 1))
    watched.reader.load()
    watched.write(good("b"))
    os.utime(watched.path, (1, 1))
    assert not watched.reader.poll()


def test_a_link_that_is_moved_to_another_file_is_followed(tmp_path: Path) -> None:
    for name in ("one", "two"):
        Watched(tmp_path, f"{name}.yaml").write(good(name))
    watched = Watched(tmp_path)
    watched.path.symlink_to(tmp_path / "one.yaml")
    watched.reader.load()
    other = tmp_path / "other"
    other.symlink_to(tmp_path / "two.yaml")
    other.rename(watched.path)
    assert watched.reader.poll()
    assert watched.queries() == ["two"]


async def test_a_running_service_takes_a_change_over(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.write(good("a"))
    world = World(file=watched.path)
    following = asyncio.create_task(world.live.run())
    watched.write(good("a"), good("b"))
    async with asyncio.timeout(60):
        while world.live.of("b") is None:  # noqa: ASYNC110 - there is no event for it
            await asyncio.sleep(0.01)
    assert world.metric("requery_override_entries", source="file", kind="block_query") == 2
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await World().live.run()  # without a file there is nothing to follow
