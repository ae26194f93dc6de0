from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from loadtests.bench.peer import PeerFailed, Work
from loadtests.bench.raw_peer import RawEnginePeer
from loadtests.bench.versions import BenchVersions

ENGINE = """
import json, sys
if sys.argv[1] == "broken":
    sys.exit("no such model")
print(json.dumps({"ready": True}), flush=True)
held = []
for line in sys.stdin:
    asked = json.loads(line)
    if asked["query"] == "die":
        sys.exit("out of memory")
    if asked["query"] == "fail":
        print(json.dumps({"id": asked["id"], "error": "too long"}), flush=True)
        continue
    held.append(asked)
    if len(held) == 2:  # in the other order
        for one in reversed(held):
            told = {"id": one["id"], "prompt": len(one["query"]), "generated": 10}
            print(json.dumps(told), flush=True)
        held = []
"""


def peer(tmp_path: Path, version: str = "bench-n4") -> RawEnginePeer:
    script = tmp_path / "engine.py"
    script.write_text(ENGINE)
    versions = BenchVersions.under(tmp_path)
    return RawEnginePeer(versions, version, tmp_path, command=(sys.executable, str(script)))


async def test_answers_find_who_asked_whatever_their_order(tmp_path: Path) -> None:
    one = peer(tmp_path)
    await one.start()
    try:
        await asyncio.gather(one.ask("a"), one.ask("bcd"))
        assert await one.work() == Work(4, 20)
        with pytest.raises(PeerFailed, match="too long"):
            await one.ask("fail")
        one.freeze()
        one.thaw()
        await asyncio.gather(one.ask("a"), one.ask("b"))
    finally:
        await one.close()
    await one.close()


async def test_an_engine_that_dies_leaves_nobody_waiting(tmp_path: Path) -> None:
    one = peer(tmp_path)
    await one.start()
    try:
        waiting = asyncio.create_task(one.ask("a"))
        with pytest.raises(PeerFailed, match="out of memory"):
            await one.ask("die")
        with pytest.raises(PeerFailed):
            await waiting
    finally:
        await one.close()


async def test_an_engine_that_does_not_start_says_why(tmp_path: Path) -> None:
    one = peer(tmp_path, "broken")
    with pytest.raises(PeerFailed, match="no such model"):
        await one.start()
    await one.close()


async def test_nothing_is_asked_before_the_start(tmp_path: Path) -> None:
    with pytest.raises(PeerFailed, match="not been started"):
        await peer(tmp_path).ask("a")
