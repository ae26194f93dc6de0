"""A dead engine core is told, and the engine object can be started again."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import time
import warnings
from collections.abc import Callable

import pytest

from service.engine.errors import EngineUnavailable
from service.engine.loading import load_engine
from tests.integration.conftest import START_SECONDS, Served
from tests.support.traffic import watching

pytestmark = [
    pytest.mark.integration,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(360),
]


def engine_core_pids() -> list[int]:
    return [c.pid for c in multiprocessing.active_children() if c.pid and "Engine" in c.name]


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and not true():
        time.sleep(0.05)
    assert true()


async def test_a_start_that_is_given_up_leaves_no_process(served: Served) -> None:
    before = engine_core_pids()
    other = load_engine(served.manifest, served.folder)
    starting = asyncio.ensure_future(other.start())
    await asyncio.to_thread(wait_until, lambda: engine_core_pids() != before)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await asyncio.to_thread(wait_until, lambda: engine_core_pids() == before)
    assert not other.healthy
    with pytest.raises(EngineUnavailable):
        await other.tag([("steele stake", "steel stake")])
    assert served.engine.healthy


async def test_a_killed_core_fails_what_is_running_and_can_be_replaced(served: Served) -> None:
    engine = served.engine
    pid = engine.core_pid
    assert pid is not None
    assert engine_core_pids() == [pid]
    assert engine.healthy

    pairs = [("steele stake", f"steel stake {i}") for i in range(64)]
    with watching(engine._llm) as traffic:
        running = asyncio.ensure_future(engine.tag(pairs))
        await traffic.until_sent(len(pairs))
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(EngineUnavailable):
        await asyncio.wait_for(running, 30)
    assert not engine.healthy
    assert engine.outstanding == 0
    with pytest.raises(EngineUnavailable):
        await anext(engine.generate("steele stake"))
    with pytest.raises(EngineUnavailable):
        await engine.tag([("steele stake", "steel stake")])

    # What a supervisor does; it also leaves an engine for the tests that follow.
    await engine.close()
    assert engine_core_pids() == []
    assert engine.core_pid is None
    with pytest.raises(EngineUnavailable):
        await engine.tag([("steele stake", "steel stake")])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        await asyncio.wait_for(engine.start(), START_SECONDS)
    assert engine.healthy
    assert len(await engine.tag([("steele stake", "steel stake")])) == 1
    assert engine.core_pid not in (pid, None)
