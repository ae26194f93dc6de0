from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from model_store.errors import BaseNotFound
from service.errors import EngineUnavailable, LoadFailed
from service.versions.state import State
from service.versions.version import ModelVersion, public_reason
from tests.support.engine import ScriptedEngine
from tests.support.versions import Engines, make_manifest
from tests.support.waiting import turns, until

WARM = ("Steel  Stake", "kids rain boots")


def silent(_prompt: int, _generated: int) -> None:
    pass


@pytest.fixture
def version() -> ModelVersion:
    return ModelVersion(make_manifest("a"))


async def test_it_is_loaded_warmed_and_ready_in_this_order(version: ModelVersion) -> None:
    engine = ScriptedEngine(held=True)
    engine.may_start.clear()
    loading = asyncio.ensure_future(version.load(Engines(a=engine), silent, warm_queries=WARM))
    await turns()
    assert (version.state, version.up) == (State.LOADING, False)
    engine.may_start.set()
    await engine.reached_hold.wait()
    assert (version.state, version.up) == (State.WARMING, False)
    with pytest.raises(EngineUnavailable, match="loading"):
        _ = version.engine
    engine.release()
    await loading
    assert (version.state, version.up) == (State.READY, True)
    assert version.engine is engine
    # In the normal form, as a shopper's query would be.
    assert engine.generated == ["steel stake", "kids rain boots"]


async def test_only_what_comes_after_warming_up_counts_as_tokens(version: ModelVersion) -> None:
    told: list[tuple[int, int]] = []
    engines = Engines()
    await version.load(engines, lambda *tokens: told.append(tokens), warm_queries=WARM)
    assert told == []
    assert [c async for c in version.engine.generate("steel stake")]
    assert len(told) == 2


@pytest.mark.parametrize(
    "script", [(), (("steel stake", None),), ((" ", 0.9),)], ids=["none", "unfinished", "blank"]
)
async def test_a_version_that_rewrites_nothing_is_not_served(
    version: ModelVersion, script: tuple[tuple[str, float | None], ...]
) -> None:
    engine = ScriptedEngine(default=script)
    with pytest.raises(LoadFailed, match="2 warm-up queries"):
        await version.load(Engines(a=engine), silent, warm_queries=WARM)
    assert version.state is State.FAILED
    assert "no finished rewrite" in (version.reason or "")
    assert engine.closed


async def test_one_rewrite_among_all_warm_up_queries_is_enough(version: ModelVersion) -> None:
    engine = ScriptedEngine({"kids rain boots": [("rain boots kids", 0.9)]}, default=())
    await version.load(Engines(a=engine), silent, warm_queries=WARM)
    assert version.up


async def test_an_engine_that_dies_while_warming_up_is_closed(version: ModelVersion) -> None:
    engine = ScriptedEngine(fault=EngineUnavailable("the engine has stopped"), fault_at=1)
    with pytest.raises(EngineUnavailable):
        await version.load(Engines(a=engine), silent, warm_queries=WARM)
    assert (version.state, version.reason) == (State.FAILED, "the engine has stopped")
    assert engine.closed


async def test_a_load_that_takes_too_long_fails(version: ModelVersion) -> None:
    engine = ScriptedEngine()
    engine.may_start.clear()
    with pytest.raises(LoadFailed, match="REQUERY_LOAD_TIMEOUT_S"):
        await version.load(Engines(a=engine), silent, timeout_s=0.01)
    assert version.state is State.FAILED
    assert engine.closed


async def test_a_time_out_inside_the_engine_is_not_taken_for_our_own(version: ModelVersion) -> None:
    engine = ScriptedEngine(start_fault=TimeoutError("handshake"))
    with pytest.raises(TimeoutError, match="handshake"):
        await version.load(Engines(a=engine), silent, timeout_s=60)
    assert version.reason == "TimeoutError (the log has the details)"


async def test_a_load_that_is_given_up_leaves_nothing(version: ModelVersion) -> None:
    engine = ScriptedEngine(held=True)
    loading = asyncio.ensure_future(version.load(Engines(a=engine), silent, warm_queries=WARM))
    await engine.reached_hold.wait()
    loading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert (version.state, version.reason) == (State.AVAILABLE, None)
    assert engine.closed
    assert engine.closed_streams == 1


async def test_unloading_waits_for_all_that_is_under_way(version: ModelVersion) -> None:
    engines = Engines()
    await version.load(engines, silent)
    with version.serving():
        unloading = asyncio.ensure_future(version.unload(drain_timeout_s=60))
        await until(lambda: version.state is State.DRAINING)
        with version.serving():  # its generation
            pass
        await turns()
        # Requests that came before still have their engine.
        assert version.engine is engines["a"]
        assert not engines["a"].closed
    assert await unloading == 0
    assert version.state is State.AVAILABLE
    assert engines["a"].closed
    with pytest.raises(EngineUnavailable, match="down"):
        _ = version.engine


async def test_letting_go_of_an_engine_ends_what_is_under_way_with_it(
    version: ModelVersion,
) -> None:
    engine = ScriptedEngine(held=True)
    await version.load(Engines(a=engine), silent)
    stream = version.engine.generate("steele stake")
    await anext(stream)
    waiting = asyncio.ensure_future(anext(stream))
    await engine.reached_hold.wait()
    await version.stop_engine()
    with pytest.raises(EngineUnavailable):
        await waiting
    assert engine.closed


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (EngineUnavailable("no device"), "no device"),
        (
            BaseNotFound("the base model /srv/models/b-1/base.gguf does not exist: put it there"),
            "the base model base.gguf does not exist: put it there",
        ),
        (
            BaseNotFound("cannot fetch s3://key:secret@bucket/models/x.gguf"),
            "cannot fetch s3://bucket/models/x.gguf",
        ),
        (OSError("/etc/shadow"), "OSError (the log has the details)"),
        (EngineUnavailable(""), "EngineUnavailable"),
        (EngineUnavailable("3/4 in. stake and/or 1/2 in."), "3/4 in. stake and/or 1/2 in."),
    ],
)
def test_a_reason_tells_what_is_wrong_and_not_where_things_are(
    error: Exception, reason: str
) -> None:
    assert public_reason(error) == reason


def test_a_reason_is_not_a_book(tmp_path: Path) -> None:
    assert len(public_reason(EngineUnavailable("x" * 10_000))) == 500
