"""Changes of the shared overrides."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.errors import (
    InvalidRequest,
    OverrideConflict,
    UnknownOverride,
)
from service.overrides import editor as editor_module
from service.overrides.entries import Entry, read_entry
from tests.support.overrides import BEFORE, NOW, SOON, World, block, pin, term


def kept(world: World) -> list[str]:
    return [entry.subject for entry in world.document.value.entries]


def named(world: World, name: str) -> Entry:
    return next(entry for entry in world.document.value.entries if entry.id == name)


async def test_an_entry_is_completed_and_what_it_says_itself_stays() -> None:
    world = World()
    name = await world.add(block("a"))
    stored = named(world, name).stored()
    assert stored == {
        "id": name, "kind": "block_query", "query": "a", "reason": "wrong", "author": "ada",
        "created_at": "2027-01-15T08:00:00Z",
    }  # fmt: skip
    other = block("b", id="mine", author="bob", created_at="2020-01-01T00:00:00Z")
    assert await world.add(other) == "mine"
    assert named(world, "mine").stored() == other


async def test_one_that_has_expired_is_refused() -> None:
    world = World()
    for expires_at in (BEFORE, "2027-01-15T08:00:00Z"):
        with pytest.raises(InvalidRequest, match="expires_at"):
            await world.add(block("a", expires_at=expires_at))
    with pytest.raises(InvalidRequest, match=r"overrides\.1\.expires_at"):
        await world.editor.replace_all(
            [read_entry(block("a")), read_entry(block("b", expires_at=BEFORE))],
            author="ada", reason=None, expected=0,
        )  # fmt: skip
    assert world.editor.revision == 0


@pytest.mark.parametrize(
    "second", [pin("A", "b"), block("a"), block("b", id="first")], ids=["pin", "same", "id"]
)
async def test_two_about_the_same_thing_or_with_one_id_conflict(second: dict[str, Any]) -> None:
    world = World()
    await world.add(block("a", id="first"))
    with pytest.raises(OverrideConflict, match="first"):
        await world.add(second)
    assert kept(world) == ["a"]


async def test_an_expired_entry_goes_with_the_next_change_and_is_in_nobodys_way() -> None:
    world = World()
    await world.add(block("a", id="x", expires_at=SOON))
    world.time = NOW + 10
    await world.add(pin("a", "b", id="x"))
    assert [entry.kind for entry in world.document.value.entries] == ["pin"]
    with pytest.raises(UnknownOverride):
        await world.editor.remove("y", author="ada")


async def test_put_replaces_in_place_or_adds() -> None:
    world = World()
    await world.add(block("a", id="x"))
    await world.add(block("b", id="y"))
    world.time = NOW + 60
    entry, new = await world.editor.put("x", read_entry(pin("c", "d")), author="bob")
    assert not new
    assert kept(world) == ["c", "b"]
    assert (entry.author, entry.stored()["created_at"]) == ("bob", "2027-01-15T08:00:00Z")
    _, new = await world.editor.put("z", read_entry(term("gun")), author="bob")
    assert new
    assert kept(world) == ["c", "b", "gun"]
    with pytest.raises(OverrideConflict, match="override y"):
        await world.editor.put("x", read_entry(block("B")), author="bob")


async def test_entries_of_the_file_are_changed_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "overrides.json"
    file.write_text(json.dumps({"overrides": [block("a", id="x", author="ada")]}))
    world = World(file=file)
    with pytest.raises(OverrideConflict, match="REQUERY_OVERRIDES_FILE"):
        await world.editor.remove("x", author="ada")
    with pytest.raises(OverrideConflict, match="REQUERY_OVERRIDES_FILE"):
        await world.editor.put("x", read_entry(block("b")), author="ada")
    # About the same query there may be one in each: that of the API goes first.
    await world.add(pin("a", "b"))


async def test_there_is_room_for_so_many_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    monkeypatch.setattr(editor_module, "MAX_ENTRIES", 2)
    await world.add(block("a", expires_at=SOON))
    await world.add(block("b"))
    with pytest.raises(OverrideConflict, match="at most 2"):
        await world.add(block("c"))
    world.time = NOW + 10
    await world.add(block("c"))
    monkeypatch.setattr(editor_module, "MAX_ENTRIES", 9)
    monkeypatch.setattr(editor_module, "MAX_CHARACTERS", 100)
    with pytest.raises(OverrideConflict, match="100 characters"):
        await world.add(pin("d", "x" * 50, "y" * 50))


async def test_every_change_is_noted_with_author_and_reason() -> None:
    world = World()
    name = await world.add(block("a", reason="unsafe"))
    await world.editor.remove(name, author="bob", reason="safe again")
    last, first = await world.store.notes(5)
    assert (first["action"], first["author"], first["reason"]) == ("overrides.add", "ada", "unsafe")
    assert first["after"]["overrides"][0]["query"] == "a"
    assert (last["action"], last["author"], last["reason"]) == (
        "overrides.delete", "bob", "safe again",
    )  # fmt: skip
    assert last["before"]["overrides"][0]["id"] == name
