"""The real engine core, killed and stopped under load, as shoppers see it over HTTP."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from model_store.materialise import materialise
from model_store.store import open_store
from tests.chaos.scrape import scrape
from tests.support.redis_server import free_port
from tests.support.waiting import until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(1500),  # three starts of an engine, on a machine that may be busy
]

VERSION = "sft-1"
STALL_S = 10.0
"""Longer than any step of a healthy engine on a busy machine."""
DEADLINE_MS = 20_000
"""In which even a slow machine generates."""
BOUND_S = 120.0
"""A request that takes this long hangs; how long they really take is measured elsewhere."""
CALLERS = 2
KNOWN = "steele stake"
ADJECTIVES = ("galvanised", "wodden", "stainles", "black", "outdor", "folding", "white", "solar")
NOUNS = ("lader", "cieling fan", "door hinge", "garden hose", "flor lamp", "shelv", "faucett")
PLACES = ("", "for kitchen", "for garage", "with hooks", "large", "small", "set", "replacement")
REASONS = {signal.SIGKILL: "died", signal.SIGSTOP: "hung"}


@dataclass
class Running:
    """``requery serve`` as a process, and where it listens."""

    process: subprocess.Popen[bytes]
    port: int

    def cores(self) -> list[int]:
        """Process ids of its engine cores."""
        return [pid for pid in _below(self.process.pid) if _is_core(pid)]


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    """One service with the packaged version, for all tests of this module."""
    materialise(open_store().get(VERSION))
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "service.cli", "serve", "--port", str(port)],
        env={
            **os.environ,
            "REQUERY_DEFAULT_VERSION": VERSION,
            "REQUERY_ENGINE_STALL_S": str(STALL_S),
            "REQUERY_ADMISSION_TARGET_MS": str(DEADLINE_MS),
            "REQUERY_LOG_REQUESTS": "false",
        },
    )
    running = Running(process, port)
    yield running
    # A core that is stopped cannot notice that its parent has gone.
    cores = running.cores() if process.poll() is None else []
    process.kill()
    process.wait()
    for pid in cores:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _below(pid: int) -> list[int]:
    found: list[int] = []
    with suppress(FileNotFoundError, ProcessLookupError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *_below(child)]
    return found


def _is_core(pid: int) -> bool:
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/comm").read_text().startswith("VLLM::Engine")
    return False


@dataclass
class Load:
    """Shoppers who ask for something new each time, and one who asks for the same again."""

    http: httpx.AsyncClient
    outcomes: Counter[str] = field(default_factory=Counter)
    known: Counter[str] = field(default_factory=Counter)

    async def ask(self, query: str, outcomes: Counter[str]) -> None:
        """One request, which must not hang nor fail in any way that we have not promised."""
        body = {"query": query, "deadline_ms": DEADLINE_MS}
        async with asyncio.timeout(BOUND_S):
            response = await self.http.post("/rewrite", json=body)
        if response.status_code == 503:
            assert int(response.headers["retry-after"]) >= 1
            outcomes["503"] += 1
            return
        assert response.status_code == 200, response.text
        answer = response.json()
        assert answer["status"] in {"ok", "none", "partial", "timeout", "fallback"}
        outcomes[f"{answer['status']} from {answer['source']}"] += 1

    async def ask_new(self, queries: Iterator[str]) -> None:
        while True:
            await self.ask(next(queries), self.outcomes)
            await asyncio.sleep(0.05)

    async def ask_known(self) -> None:
        while True:
            await self.ask(KNOWN, self.known)
            await asyncio.sleep(0.1)

    async def until_more(self, outcome: str, n: int = 1) -> None:
        """Wait for ``n`` more of an outcome."""
        goal = self.outcomes[outcome] + n
        await until(lambda: self.outcomes[outcome] >= goal)


async def until_ready(http: httpx.AsyncClient, *, ready: bool = True) -> None:
    """Wait until the service says that it is ready, or that it is not."""

    async def says_so() -> bool:
        try:
            code = (await http.get("/readyz")).status_code
        except httpx.TransportError:
            return False
        assert code in (200, 503)
        return (code == 200) == ready

    await until(says_so, poll_s=0.1)


@asynccontextmanager
async def shopping(http: httpx.AsyncClient, words: Iterator[str]) -> AsyncIterator[Load]:
    """Load for as long as the block lasts; the first request that goes wrong ends both."""
    load = Load(http)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(load.ask_new(words)) for _ in range(CALLERS)]
        tasks.append(group.create_task(load.ask_known()))
        yield load
        for task in tasks:
            task.cancel()


@pytest.fixture(scope="module")
def words() -> Iterator[str]:
    """Queries that nobody has asked for yet, more of them than any test asks for."""
    every = itertools.product(range(1, 1000), PLACES, NOUNS, ADJECTIVES)
    return (f"{adjective} {noun} {place} {n} pack" for n, place, noun, adjective in every)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_a_core_that_is_lost_under_load_hangs_nobody_and_is_replaced(
    running: Running, words: Iterator[str], number: signal.Signals
) -> None:
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{running.port}", timeout=BOUND_S
    ) as http:
        await until_ready(http)
        response = await http.post("/rewrite", json={"query": KNOWN, "deadline_ms": 30_000})
        assert response.json()["status"] == "ok"
        (lost,) = running.cores()
        async with shopping(http, words) as load:
            await load.until_more("ok from engine", 5)
            os.kill(lost, number)
            await until_ready(http, ready=False)
            # The cache does without the engine, and everybody else is told to.
            known = load.known["ok from memory"]
            await load.until_more("fallback from none", 10)
            await until(lambda: load.known["ok from memory"] > known)
            await until_ready(http)
            await load.until_more("ok from engine", 5)
        assert set(load.known) == {"ok from memory"}
        (core,) = running.cores()
        assert core != lost
        assert lost not in _below(running.process.pid)
        restarts = await scrape(http, "requery_engine_restarts_total", "version", "reason")
        assert restarts[VERSION, REASONS[number]] >= 1
        # What was lost with the engine holds no place.
        await until(lambda: is_idle(http), poll_s=0.1)


async def is_idle(http: httpx.AsyncClient) -> bool:
    """Whether no generation is under way, and no candidate has a place."""
    flights = await scrape(http, "requery_generations_in_flight")
    places = await scrape(http, "requery_admission_in_use")
    return not sum(flights.values()) + sum(places.values())
