"""An engine behind a deployment handle: what crosses it, and what is lost on the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from model_store.manifest import Manifest
from service.engine.errors import EngineUnavailable, QueryTooLong
from service.engine.protocol import Engine
from service.ray import remote as module
from service.ray.remote import RemoteEngine
from service.versions.version import ModelVersion, OnTokens
from tests.ray.handles import FakeHandle, ReplicaDied
from tests.ray.test_host import Hosted, started
from tests.support.engine import ScriptedEngine
from tests.support.service import serving
from tests.support.versions import make_manifest
from tests.support.waiting import until


@pytest.fixture(autouse=True)
def _quick_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "POLL_S", 0.001)


class Far:
    """A remote engine, and all that is behind it."""

    def __init__(self, hosted: Hosted) -> None:
        self.hosted = hosted
        self.handle = FakeHandle(hosted.host)
        self.tokens: list[tuple[int, int]] = []
        self.engine = RemoteEngine(
            self.handle,
            self.handle.count,
            name="engine-test-1",
            on_tokens=lambda prompt, generated: self.tokens.append((prompt, generated)),
        )


@pytest_asyncio.fixture
async def far() -> AsyncIterator[Far]:
    made = Far(await started(ScriptedEngine(held=True)))
    await made.engine.start()
    yield made
    made.hosted.engine.release()
    await made.engine.close()
    await made.hosted.host.close()


async def test_candidates_tags_and_tokens_arrive(far: Far) -> None:
    far.hosted.engine.release()
    texts = [candidate.text async for candidate in far.engine.generate("steele stake")]
    assert texts == ["steel stake", "metal stake"]
    assert await far.engine.tag([("a", "b")]) == [0.5]
    assert far.tokens == [(3, 3), (3, 3)]
    assert far.engine.progress == 3
    assert far.engine.outstanding == 0
    assert far.engine.effort == 0.0


async def test_closing_the_iterator_ends_the_work_on_the_replica(far: Far) -> None:
    stream = far.engine.generate("steele stake")
    await anext(stream)
    assert (far.engine.outstanding, far.hosted.engine.outstanding) == (1, 1)
    await stream.aclose()
    assert far.engine.outstanding == 0
    await until(lambda: far.hosted.engine.outstanding == 0)


async def test_cancelling_who_waits_ends_the_work_on_the_replica(far: Far) -> None:
    async def wait() -> None:
        async for _ in far.engine.generate("steele stake"):
            pass

    generating = asyncio.create_task(wait())
    tagging = asyncio.create_task(far.engine.tag([("a", "b")]))
    await until(lambda: far.hosted.engine.outstanding == 2)
    for task in (generating, tagging):
        task.cancel()
    outcomes = await asyncio.gather(generating, tagging, return_exceptions=True)
    assert all(isinstance(one, asyncio.CancelledError) for one in outcomes)
    await until(lambda: far.hosted.engine.outstanding == 0)


async def test_a_lost_replica_is_the_engine_s_loss(far: Far) -> None:
    stream = far.engine.generate("steele stake")
    assert (await anext(stream)).text == "steel stake"
    far.handle.streams[0].die()
    with pytest.raises(EngineUnavailable) as lost:
        await anext(stream)
    assert isinstance(lost.value.__cause__, ReplicaDied)
    assert far.engine.healthy, "others may run"


@pytest.mark.parametrize("fault", [QueryTooLong("too long"), EngineUnavailable("gone")])
async def test_the_engine_s_own_errors_arrive_as_they_are(far: Far, fault: Exception) -> None:
    far.hosted.engine.fault = fault
    with pytest.raises(type(fault), match=str(fault)):
        _ = [one async for one in far.engine.generate("a")]
    with pytest.raises(type(fault), match=str(fault)):
        await far.engine.tag([("a", "b")])


async def test_closing_the_engine_ends_what_is_under_way(far: Far) -> None:
    async def wait() -> list[str]:
        return [one.text async for one in far.engine.generate("steele stake")]

    generating = asyncio.create_task(wait())
    tagging = asyncio.create_task(far.engine.tag([("a", "b")]))
    await until(lambda: far.hosted.engine.outstanding == 2)
    await far.engine.close()
    for task in (generating, tagging):
        with pytest.raises(EngineUnavailable):
            await task
    with pytest.raises(EngineUnavailable, match="closed"):
        await anext(far.engine.generate("a"))
    assert not far.engine.healthy


async def test_it_starts_with_the_first_replica_and_is_as_healthy_as_there_are_some() -> None:
    far = Far(await started())
    far.handle.running = 0
    starting = asyncio.create_task(far.engine.start())
    await until(lambda: far.handle.counted >= 2)
    assert not starting.done()
    far.handle.running = 2
    await starting
    assert far.engine.healthy
    far.handle.fault = RuntimeError("the controller is away")
    counted = far.handle.counted
    await until(lambda: far.handle.counted >= counted + 2)
    assert far.engine.healthy, "what was known is kept"
    far.handle.fault, far.handle.running = None, 0
    await until(lambda: not far.engine.healthy)
    far.handle.running = 1
    await until(lambda: far.engine.healthy)
    await far.engine.close()
    await far.hosted.host.close()


async def test_one_that_is_closed_while_it_waits_for_a_replica_does_not_start() -> None:
    far = Far(await started())
    far.handle.running = 0
    starting = asyncio.create_task(far.engine.start())
    await until(lambda: far.handle.counted >= 2)
    await far.engine.close()
    with pytest.raises(EngineUnavailable):
        await starting
    await far.hosted.host.close()


class TestInTheService:
    """The whole pipeline on a remote engine."""

    async def test_a_replica_that_comes_back_is_picked_up_and_readyz_tells(self) -> None:
        far = Far(await started())
        async with serving() as serve:
            service = await serve(**_far(far))
            assert (await service.rewrite("steele stake", deadline_ms=20_000))["status"] == "ok"
            far.handle.running = 0

            async def not_ready() -> bool:
                return (await service.client.get("/readyz")).status_code == 503

            await service.until(not_ready)
            assert (await service.rewrite("other stake"))["status"] == "fallback"
            assert (await service.rewrite("steele stake"))["source"] == "memory"
            far.handle.running = 1
            await service.until_ready()
            assert (await service.rewrite("other stake", deadline_ms=20_000))["status"] == "ok"
        await far.hosted.host.close()

    async def test_a_lost_call_is_a_fallback_at_once(self) -> None:
        far = Far(await started(ScriptedEngine(held=True, held_from=0)))
        async with serving() as serve:
            service = await serve(**_far(far))
            asked = asyncio.create_task(service.rewrite("steele stake", deadline_ms=20_000))
            await until(lambda: bool(far.handle.streams))
            far.handle.streams[-1].die()
            assert (await asked)["status"] == "fallback"
        far.hosted.engine.release()
        await far.hosted.host.close()


def _far(far: Far) -> dict[str, Any]:
    """What makes a service's default version run on ``far``."""

    async def make(_manifest: Manifest, on_tokens: OnTokens) -> Engine:
        return RemoteEngine(far.handle, far.handle.count, name="e", on_tokens=on_tokens)

    version = ModelVersion(make_manifest("far-1"))
    return {"more_versions": (version,), "more_engines": make, "default_version": "far-1"}
