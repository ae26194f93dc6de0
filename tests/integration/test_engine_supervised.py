"""A real engine core, killed and stopped: it is replaced without a person."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import warnings
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from model_store.manifest import Manifest
from service.engine.errors import EngineUnavailable
from service.engine.loading import load_engine
from service.engine.protocol import Candidate
from service.engine.vllm import VllmEngine
from service.versions.loader import Loader
from service.versions.memory_budget import MemoryBudget
from service.versions.metrics import LoaderMetrics, SupervisorMetrics
from service.versions.registry import VersionRegistry
from service.versions.supervisor import Supervisor
from service.versions.version import ModelVersion, OnTokens
from tests.support.waiting import until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(900),  # two or three starts, on a machine that may be busy
]

STALL_S = 10.0
"""Longer than any step of a healthy engine on a busy machine, and short beside a start."""


class Supervised:
    """One version on a real engine, and its supervisor at work."""

    def __init__(self, manifest: Manifest, folder: Path) -> None:
        self.registry = CollectorRegistry()
        self.version = ModelVersion(manifest)

        async def make(manifest: Manifest, on_tokens: OnTokens) -> VllmEngine:
            return load_engine(manifest, folder, on_tokens=on_tokens)

        versions = VersionRegistry([self.version], default=manifest.name)
        self.loader = Loader(
            versions=versions,
            engines=make,
            on_tokens=lambda _name: lambda _prompt, _generated: None,
            memory=MemoryBudget.unlimited(),
            metrics=LoaderMetrics(self.registry),
        )
        self.supervisor = Supervisor(
            versions=versions,
            loader=self.loader,
            desired=lambda: {manifest.name},
            metrics=SupervisorMetrics(self.registry),
            stall_s=STALL_S,
        )

    @property
    def engine(self) -> VllmEngine:
        engine = self.version.engine
        assert isinstance(engine, VllmEngine)
        return engine

    @property
    def core(self) -> int:
        pid = self.engine.core_pid
        assert pid is not None
        return pid

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, {"version": self.version.name, **labels})

    async def generate(self, query: str) -> list[Candidate]:
        return [candidate async for candidate in self.version.engine.generate(query)]

    async def working(self, n: int) -> list[asyncio.Task[list[Candidate]]]:
        """``n`` generations that have begun, none of which has ended."""
        calls = [
            asyncio.create_task(self.generate(f"{i} inch galvanized steel stake")) for i in range(n)
        ]
        await until(lambda: self.engine.outstanding >= n)
        return calls


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def supervised(materialised: tuple[Manifest, Path]) -> AsyncIterator[Supervised]:
    one = Supervised(*materialised)
    with warnings.catch_warnings():
        # Importing vLLM and torch sets off deprecations among themselves.
        warnings.simplefilter("ignore")
        await one.loader.load(one.version.name)
    running = asyncio.create_task(one.supervisor.run())
    yield one
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await one.loader.close()


def is_gone(pid: int) -> bool:
    """Whether there is no such process, not even as a zombie."""
    return not Path(f"/proc/{pid}").exists()


def open_files() -> int:
    # vLLM's objects refer to each other: their files go with the garbage.
    gc.collect()
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def monitors() -> int:
    return sum(thread.name == "MPClientEngineMonitor" for thread in threading.enumerate())


async def ended(calls: list[asyncio.Task[list[Candidate]]]) -> None:
    """All calls end, and each is told why."""
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(outcome, EngineUnavailable)
    # The errors' tracebacks would keep the engine that they came from.
    calls.clear()


async def says_that_it_is_dead(engine: VllmEngine) -> bool:
    """Whether an engine refuses work, is not healthy and has nothing under way."""
    try:
        await engine.tag([("steele stake", "steel stake")])
    except EngineUnavailable:
        return not engine.healthy and engine.outstanding == 0
    return False


async def test_a_core_that_was_only_held_up_is_kept(supervised: Supervised) -> None:
    engine, core = supervised.engine, supervised.core
    before = supervised.metric("requery_engine_restarts_total", reason="hung")
    os.kill(core, signal.SIGSTOP)
    calls = await supervised.working(2)
    await until(lambda: supervised.version.suspected)
    os.kill(core, signal.SIGCONT)
    for candidates in await asyncio.gather(*calls):
        assert candidates
    await until(lambda: supervised.version.up)
    assert supervised.engine is engine
    assert supervised.metric("requery_engine_restarts_total", reason="hung") == before


async def test_a_killed_core_is_replaced(supervised: Supervised) -> None:
    killed, threads = supervised.core, monitors()
    refuses = says_that_it_is_dead(supervised.engine)
    calls = await supervised.working(8)
    os.kill(killed, signal.SIGKILL)
    await ended(calls)
    assert await refuses
    with pytest.raises(EngineUnavailable, match="try again shortly"):
        await supervised.generate("steele stake")
    await until(lambda: supervised.version.up)
    assert await supervised.generate("steele stake")
    assert supervised.core != killed
    assert supervised.metric("requery_engine_restarts_total", reason="died") == 1
    await until(lambda: supervised.metric("requery_engine_outage_seconds_count") == 1)
    assert is_gone(killed)
    await until(lambda: monitors() <= threads)


async def test_a_stopped_core_with_work_is_suspected_and_replaced(supervised: Supervised) -> None:
    stopped, threads = supervised.core, monitors()
    assert await supervised.generate("3/4 in. pvc pipe")
    # Not before the first replacement, which opens what the process then keeps for good.
    files = open_files()
    os.kill(stopped, signal.SIGSTOP)
    calls = await supervised.working(8)
    await until(lambda: supervised.version.suspected)
    # They wait still; nobody else has to.
    assert not any(call.done() for call in calls)
    with pytest.raises(EngineUnavailable, match="not answering"):
        await supervised.generate("steele stake")
    await ended(calls)
    await until(lambda: supervised.version.up)
    assert await supervised.generate("steele stake")
    assert supervised.metric("requery_engine_restarts_total", reason="hung") == 1
    assert is_gone(stopped)
    await until(lambda: monitors() <= threads)
    # Nothing is left of this one. (Not asked of a killed one: pytest keeps the error that vLLM logs
    # then, and with it half of the engine, to the end of the test.)
    await until(lambda: open_files() <= files, poll_s=0.1)
