"""One engine in a replica: what it sends, and what becomes of it when it is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import pytest

from model_store.manifest import Manifest
from service.config.settings import Settings
from service.engine.errors import EngineUnavailable, QueryTooLong
from service.engine.protocol import Engine
from service.ray import host as module
from service.ray.host import EngineHost, with_beats
from service.ray.wire import Item, Refusal, Tagged
from service.versions.supervisor import Supervisor
from service.versions.version import ModelVersion, OnTokens
from tests.support.engine import ScriptedEngine
from tests.support.versions import make_manifest
from tests.support.waiting import until


class Hosted:
    """A host on a scripted engine; ``left`` says whether its process would have ended."""

    def __init__(self, engine: ScriptedEngine, **settings: float | str) -> None:
        self.engine = engine
        self.left = 0
        options = {"warm_queries": ";"} | settings
        self.host = EngineHost(
            ModelVersion(make_manifest()),
            self._make,
            Settings(**options),  # type: ignore[arg-type]
            leave=self._leave,
        )

    async def _make(self, _manifest: Manifest, on_tokens: OnTokens) -> Engine:
        self.engine.on_tokens = on_tokens
        return self.engine

    def _leave(self) -> None:
        self.left += 1


async def started(engine: ScriptedEngine | None = None, **settings: float | str) -> Hosted:
    hosted = Hosted(engine or ScriptedEngine(), **settings)
    await hosted.host.load()
    return hosted


async def test_candidates_come_with_the_tokens_that_they_took() -> None:
    hosted = await started()
    items = [item async for item in hosted.host.generate("steele stake")]
    assert all(isinstance(item, Item) for item in items)
    found = [item for item in items if isinstance(item, Item)]
    assert [item.candidate.text for item in found if item.candidate] == [
        "steel stake",
        "metal stake",
    ]
    assert [tokens for item in found for tokens in item.tokens] == [(3, 3), (3, 3)]
    await hosted.host.close()


async def test_tokens_of_a_call_that_was_given_up_go_with_the_next() -> None:
    hosted = await started(ScriptedEngine(held=True))
    stream = hosted.host.generate("steele stake")
    await anext(stream)
    hosted.host._count(5, 7)
    await stream.aclose()
    hosted.engine.release()
    tagged = await hosted.host.tag([("a", "b")])
    assert isinstance(tagged, Tagged)
    assert (tagged.relevance, tagged.tokens) == ([0.5], ((5, 7),))
    await hosted.host.close()


@pytest.mark.parametrize(
    ("fault", "kind"),
    [(QueryTooLong("too long"), "too_long"), (EngineUnavailable("gone"), "unavailable")],
)
async def test_the_engine_s_errors_are_sent_as_values(fault: Exception, kind: str) -> None:
    hosted = await started(ScriptedEngine(fault=fault, fault_at=1))
    items = [item async for item in hosted.host.generate("steele stake")]
    last = items[-1]
    assert isinstance(items[0], Item)
    assert isinstance(last, Refusal)
    assert (last.kind, last.detail) == (kind, str(fault))
    assert type(last.error()) is type(fault)
    assert await hosted.host.tag([("a", "b")]) == Refusal(kind, str(fault))  # type: ignore[arg-type]
    await hosted.host.close()


async def test_closing_a_generation_ends_the_engine_s_work() -> None:
    hosted = await started(ScriptedEngine(held=True))
    stream = hosted.host.generate("steele stake")
    await anext(stream)
    assert hosted.engine.outstanding == 1
    await stream.aclose()
    assert (hosted.engine.outstanding, hosted.engine.closed_streams) == (0, 1)
    await hosted.host.close()


async def test_a_slow_engine_gives_signs_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.001)
    hosted = await started(ScriptedEngine(held=True, held_from=0))
    stream = hosted.host.generate("steele stake")
    assert await anext(stream) == Item(None)
    hosted.engine.release()
    rest = [item async for item in stream if isinstance(item, Item) and item.candidate is not None]
    assert len(rest) == 2
    await hosted.host.close()


async def test_one_that_is_suspected_gives_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BEAT_S", 0.001)
    beats = []

    async def counted(*arguments: Any) -> AsyncIterator[Any]:
        async with aclosing(with_beats(*arguments)) as items:
            async for item in items:
                beats.append(item)
                yield item

    monkeypatch.setattr(module, "with_beats", counted)
    hosted = await started(ScriptedEngine(held=True, held_from=0))
    hosted.host._version.suspect()
    stream = hosted.host.generate("steele stake")
    first = asyncio.ensure_future(anext(stream))
    await until(lambda: len(beats) >= 10)
    assert not first.done()
    hosted.engine.release()
    item = await first
    assert isinstance(item, Item)
    assert item.candidate is not None
    await stream.aclose()
    await hosted.host.close()


async def test_an_engine_that_dies_ends_the_replica_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hosted = await started()
    assert hosted.host.up
    hosted.engine.die()
    await until(lambda: hosted.left > 0)
    assert hosted.engine.closed, "its memory is freed first"
    assert not hosted.host.up
    items = [item async for item in hosted.host.generate("a")]
    assert isinstance(items[0], Refusal)
    # The supervisor goes on checking, and finds the replacement in progress.
    checks = 0
    check = Supervisor.check

    def counted(supervisor: Supervisor) -> None:
        nonlocal checks
        checks += 1
        check(supervisor)

    monkeypatch.setattr(Supervisor, "check", counted)
    await until(lambda: checks >= 2)
    assert hosted.left == 1
    await hosted.host.close()


async def test_an_engine_that_hangs_ends_the_replica() -> None:
    hosted = await started(ScriptedEngine(held=True, held_from=0), engine_stall_s=1.0)

    async def wait() -> list[Item | Refusal]:
        return [item async for item in hosted.host.generate("steele stake")]

    waiting = asyncio.create_task(wait())
    await until(lambda: hosted.left == 1)
    assert isinstance((await waiting)[-1], Refusal), "who waits is told"
    await hosted.host.close()


async def test_an_engine_that_cannot_be_closed_ends_the_replica_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hosted = await started()

    async def refuse() -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(hosted.engine, "close", refuse)
    hosted.engine.die()
    await until(lambda: hosted.left == 1)
    await hosted.host.close()


class TestBeats:
    async def test_they_come_as_long_as_nothing_else_does(self) -> None:
        go = asyncio.Event()

        async def slow() -> AsyncIterator[int]:
            yield 1
            await go.wait()
            yield 2

        found: list[int | None] = []
        async for item in with_beats(slow(), 0.001):
            found.append(item)
            if found.count(None) == 3:
                go.set()
        assert [one for one in found if one is not None] == [1, 2]
        assert found[1:4] == [None, None, None]

    async def test_what_the_stream_raises_comes_out(self) -> None:
        async def broken() -> AsyncIterator[int]:
            yield 1
            raise QueryTooLong("x")

        with pytest.raises(QueryTooLong):
            _ = [item async for item in with_beats(broken(), 1.0)]
