"""The servers whose hits are compared, each warm and, until it is its turn, stopped."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson

from loadtests.bench import litellm
from loadtests.bench.child import Child, pin, send
from loadtests.bench.litellm import LitellmProxy
from loadtests.bench.peer import PeerFailed
from loadtests.bench.section import Say
from loadtests.client import HttpTransport
from loadtests.exchange import NoReply
from loadtests.queries import Queries
from loadtests.scenarios.traffic import warm
from loadtests.target import Target
from tests.support.redis_server import RedisServer, free_port

GENERATOR, BARE, MEMORY, REDIS, LITELLM = (
    "generator",
    "bare route",
    "memory",
    "Redis",
    "LiteLLM, Redis",
)
"""What the figures of each are called by; the first is the generator alone."""
_PATIENT = "1000"
"""Milliseconds that a look-up in Redis may take. With every connection always busy, each request
waits for all the others: the default, 15, would turn hits into misses, which is right for shoppers
and no measure of throughput. LiteLLM has no such bound either."""
_JSON = {"content-type": "application/json"}

Misses = Callable[[], Awaitable[int]]


async def _none() -> int:
    return 0


@dataclass(frozen=True, slots=True)
class HitServer:
    """One of them.

    Attributes:
        name: what its figures are called by.
        pid: its process.
        url: scheme, host and port.
        path: that is asked.
        bodies: file of requests, one a line.
        setup: how it is configured.
        misses: how many of its answers were no hits, ever.
    """

    name: str
    pid: int
    url: str
    path: str
    bodies: Path
    setup: dict[str, Any]
    misses: Misses = _none

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Its processes run for as long as this is open."""
        send(self.pid, signal.SIGCONT)
        try:
            yield
        finally:
            send(self.pid, signal.SIGSTOP)


class Servers:
    """All of them; a context manager that ends them.

    Args:
        folder: for logs and requests.
        home: where LiteLLM's environment is kept.
        known: queries that are put into the caches.
        draws: requests to prepare.
        say: tells whoever waits.
    """

    def __init__(self, folder: Path, home: Path, known: Queries, draws: int, say: Say) -> None:
        self._folder, self._home, self._known, self._say = folder, home, known, say
        self._stack = AsyncExitStack()
        self._redis = RedisServer(folder)
        self.all: list[HitServer] = []
        """In the order in which they take turns."""
        self.open_loop: list[HitServer] = []
        """Those whose latency is measured: of the generator alone, the bare route, and memory."""
        self.missing: dict[str, str] = {}
        """Why one could not be measured, by name."""
        drawn = [known.popular() for _ in range(draws)]
        self._ours = self._write("rewrite.jsonl", [orjson.dumps({"query": q}) for q in drawn])
        self._chats = self._write("chat.jsonl", [litellm.body(q) for q in drawn])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for server in (*self.all, *self.open_loop):
            send(server.pid, signal.SIGCONT)
        await self._stack.aclose()

    def setup(self) -> dict[str, Any]:
        """How each is configured."""
        return {server.name: server.setup for server in self.all}

    def pin(self, server: Sequence[int], others: Sequence[int]) -> None:
        """Keep the servers on some cores, and Redis with the generator on others."""
        for one in (*self.all, *self.open_loop):
            pin(one.pid, server)
        with self._redis.client() as client:
            pin(int(client.info("server")["process_id"]), others)

    async def start(self, *, litellm: bool) -> None:
        """Start all, one after the other, and fill their caches."""
        await asyncio.to_thread(self._redis.start)
        self._stack.callback(self._redis.stop)
        bare = await self._bare_route()
        shared = {"REQUERY_REDIS_URL": self._redis.url, "REQUERY_REDIS_READ_BUDGET_MS": _PATIENT}
        memory = await self._requery(MEMORY, shared)
        await self._requery(REDIS, {**shared, "REQUERY_CACHE_MEMORY_BYTES": "0"})
        alone = await self._generator_alone(bare)
        self.open_loop = [alone, bare, memory]
        if litellm:
            self._say("starting LiteLLM's proxy (the first time it is installed, some minutes)")
            try:
                await self._litellm(bare)
            except (PeerFailed, NoReply, OSError) as error:
                self.missing[LITELLM] = str(error)

    async def _bare_route(self) -> HitServer:
        port = free_port()
        command = [sys.executable, "-m", "loadtests.bench.bare_route", str(port)]
        child = await self._stack.enter_async_context(Child(command, self._folder / "bare.log"))
        url = f"http://127.0.0.1:{port}"
        await child.until_answers(url, "/fixed/asked")
        setup = {"server": "uvicorn, uvloop, httptools, one worker", "answer": "fixed"}
        return self._add(HitServer(BARE, child.pid, url, "/rewrite", self._ours, setup))

    async def _requery(self, tier: str, settings: dict[str, str]) -> HitServer:
        self._say(f"starting the service, whose hits come from {tier}")
        target = Target(self._folder / f"requery_{tier.lower()}", settings)
        await self._stack.enter_async_context(target)
        await warm(target, self._known.known)

        async def misses() -> int:
            samples = await target.metrics()
            return int(
                sum(
                    value
                    for (name, labels), value in samples.items()
                    if name == "requery_request_duration_seconds_count"
                    and dict(labels)["source"] != tier.lower()
                )
            )

        server = HitServer(
            tier, target.process.pid, target.url, "/rewrite", self._ours, dict(settings), misses
        )
        return self._add(server)

    async def _generator_alone(self, bare: HitServer) -> HitServer:
        """A server that does nothing: what is left is the generator's own."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "loadtests.bare",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )

        async def end() -> None:
            if process.returncode is None:
                process.terminate()
            await process.wait()

        self._stack.push_async_callback(end)
        if process.stdout is None:
            raise PeerFailed("the bare server has no standard output")
        async with asyncio.timeout(120):
            port = int(await process.stdout.readline())
        url = f"http://127.0.0.1:{port}"
        return HitServer(GENERATOR, process.pid, url, bare.path, self._ours, {})

    async def _litellm(self, provider: HitServer) -> HitServer:
        proxy = LitellmProxy(
            self._home,
            self._folder,
            port=free_port(),
            provider=f"{provider.url}/fixed",
            redis_port=self._redis.port,
        )
        self._stack.push_async_callback(proxy.close)
        send(provider.pid, signal.SIGCONT)
        await proxy.start()
        async with HttpTransport(proxy.url) as transport:
            for query in self._known.known:
                code, _, content = await transport.fetch(
                    "POST", litellm.PATH, litellm.body(query), _JSON
                )
                if code != 200:
                    raise PeerFailed(f"LiteLLM answers {code}: {content[:200]!r}")

        async def asked() -> int:
            send(provider.pid, signal.SIGCONT)
            async with HttpTransport(provider.url) as transport:
                _, content = await transport.get("/fixed/asked")
            return int(orjson.loads(content)["asked"])

        setup = {"release": proxy.release, "num_workers": 1, "config": proxy.settings}
        return self._add(
            HitServer(LITELLM, proxy.pid, proxy.url, litellm.PATH, self._chats, setup, asked)
        )

    def _add(self, server: HitServer) -> HitServer:
        send(server.pid, signal.SIGSTOP)
        self.all.append(server)
        return server

    def _write(self, name: str, bodies: Sequence[bytes]) -> Path:
        path = (self._folder / name).absolute()
        path.write_bytes(b"\n".join(bodies) + b"\n")
        return path
