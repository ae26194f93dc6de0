"""What is in force: both sources, expiry by the clock, hits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from service.overrides.live import Override
from tests.support.overrides import LATER, NOW, SOON, World, block, pin, term

BLOCKED = Override("blocked")


def with_file(path: Path, *contents: dict[str, Any]) -> World:
    file = path / "overrides.json"
    file.write_text(json.dumps({"overrides": [{"author": "ada", **one} for one in contents]}))
    return World(file=file)


async def test_case_does_not_matter_on_either_side() -> None:
    world = World()
    await world.add(block("Stra\u00dfe Karte"))
    await world.add(pin("iphone", "Apple iPhone", "phone"))
    # In the normal form of a version that folds case, and of one that does not.
    assert world.live.of("strasse karte") == world.live.of("STRASSE Karte") == BLOCKED
    assert world.live.of("Stra\u00dfe Karte") == BLOCKED
    assert world.live.of("iPhone") == Override("pinned", ("Apple iPhone", "phone"))
    assert world.live.of("iphones") is None


async def test_a_term_of_either_source_is_blocked(tmp_path: Path) -> None:
    world = with_file(tmp_path, term("rifle"))
    await world.add(term("gun"))
    assert [world.live.blocked(text) for text in ("nail guns", "Air Rifle", "stake")] == [
        True, True, False,
    ]  # fmt: skip


async def test_an_entry_of_the_api_goes_before_one_of_the_file(tmp_path: Path) -> None:
    world = with_file(tmp_path, block("stake"), block("pole"))
    await world.add(pin("Stake", "steel stake", expires_at=SOON))
    assert world.live.of("stake") == Override("pinned", ("steel stake",))
    assert world.live.of("pole") == BLOCKED
    world.time = NOW + 10
    assert world.live.of("stake") == BLOCKED


async def test_an_entry_ends_at_its_time_without_anybody_doing_anything() -> None:
    world = World()
    await world.add(block("stake", expires_at=SOON))
    await world.add(term("gun", expires_at=SOON))
    world.time = NOW + 9.999
    assert world.live.of("stake") == BLOCKED
    assert world.live.blocked("gun")
    world.time = NOW + 10
    assert world.live.of("stake") is None
    assert not world.live.blocked("gun")
    assert list(world.live.in_force()) == []


async def test_hits_are_counted_by_kind_and_by_entry(tmp_path: Path) -> None:
    world = with_file(tmp_path, block("pole"))
    await world.add(pin("stake", "steel stake"))
    await world.add(term("gun"))
    for query in ("stake", "Stake", "pole", "rod"):
        world.live.of(query)
    world.live.blocked("gun and gun")
    world.live.blocked("rod")
    assert world.hits() == {"stake": 2, "pole": 1, "gun": 1}
    assert [
        world.metric("requery_override_hits_total", kind=kind)
        for kind in ("pin", "block_query", "block_term")
    ] == [2, 1, 1]


async def test_hits_outlive_changes_of_other_entries_and_end_with_their_own() -> None:
    world = World()
    name = await world.add(block("stake"))
    world.live.of("stake")
    await world.add(block("pole", expires_at=LATER))
    assert world.hits() == {"stake": 1, "pole": 0}
    await world.editor.remove(name, author="ada")
    await world.add(block("stake", id=name))
    assert world.hits() == {"pole": 0, "stake": 0}


async def test_entries_are_shown_by_source_and_kind(tmp_path: Path) -> None:
    world = with_file(tmp_path, block("pole"), block("rod"))
    await world.add(term("gun"))
    for source, kind, n in (
        ("file", "block_query", 2), ("api", "block_term", 1), ("api", "pin", 0),
    ):  # fmt: skip
        assert world.metric("requery_override_entries", source=source, kind=kind) == n


@pytest.mark.parametrize("body", [{"overrides": [{"kind": "unheard-of"}]}, {"rules": []}])
async def test_a_shared_document_that_cannot_be_taken_changes_nothing(body: dict[str, Any]) -> None:
    world = World()
    await world.add(block("stake"))
    await world.store.write("overrides", body, schema=1, expected=1)
    assert world.live.of("stake") == BLOCKED
    # ... and the next change mends it.
    await world.add(block("pole"))
    other = World(store=world.store)
    await other.document.refresh()
    assert other.live.of("stake") == other.live.of("pole") == BLOCKED
