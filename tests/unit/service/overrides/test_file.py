"""The file of overrides: read at start, followed, and never a reason to stop."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from service.config.watched_file import FileInvalid
from service.overrides.file import overrides_file
from service.overrides.metrics import OverrideMetrics
from tests.support.overrides import BEFORE, NOW, World, block
from tests.support.waiting import until

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
        self.reader = overrides_file(self.path, OverrideMetrics(self.registry))

    def write(self, *contents: dict[str, Any]) -> None:
        self.path.write_text(json.dumps({"overrides": contents}))

    def reads(self, result: str) -> float | None:
        return self.registry.get_sample_value(
            "requery_override_file_reads_total", {"result": result}
        )

    def queries(self) -> list[str]:
        return [entry.subject for entry in self.reader.value.entries]


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


def good(query: str) -> dict[str, Any]:
    return block(query, author="ada")


def test_yaml_is_read(watched: Watched) -> None:
    watched.path.write_text(YAML)
    watched.reader.load()
    first, second, third = watched.reader.value.entries
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
    ids = {entry.subject: entry.id for entry in watched.reader.value.entries}
    watched.write(good("c"), good("B"))
    assert watched.reader.poll()
    after = {entry.subject: entry.id for entry in watched.reader.value.entries}
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
    with pytest.raises(FileInvalid) as caught:
        watched.reader.load()
    message = str(caught.value)
    assert str(watched.path) in message
    assert said in message
    assert "REQUERY_OVERRIDES_FILE" in message
    assert "\n" not in message


def test_a_file_of_another_name_ends_the_start(tmp_path: Path) -> None:
    watched = Watched(tmp_path, "overrides.txt")
    watched.write()
    with pytest.raises(FileInvalid, match="rename it"):
        watched.reader.load()


async def test_a_running_service_takes_a_change_over(tmp_path: Path) -> None:
    watched = Watched(tmp_path)
    watched.write(good("a"))
    world = World(file=watched.path)
    following = asyncio.create_task(world.live.run())
    watched.write(good("a"), good("b"))
    await until(lambda: world.live.of("b") is not None)
    assert world.metric("requery_override_entries", source="file", kind="block_query") == 2
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await World().live.run()  # without a file there is nothing to follow
