"""The servers whose hits are compared: each is warm, and paused until its turn."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import orjson
import yaml

from loadtests.bench.peers import post
from loadtests.client import HttpTransport
from loadtests.exchange import NoReply
from loadtests.processes import Child, ServerFailed, output, pin
from loadtests.queries import Queries
from loadtests.runner import WORK
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
"""Names of the servers; the first one is the generator with a server that does nothing."""
_READ_BUDGET_MS = "1000"
"""Budget of a look-up in Redis. With all connections busy, each request waits for all others: the
default, 15, would turn hits into misses. This is right for shoppers and no measure of throughput.
LiteLLM has no such budget either."""
_INSTALL_S = 1800.0
_CHAT = "/v1/chat/completions"
_LITELLM_ENVIRONMENT = {
    "LITELLM_TELEMETRY": "False",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOG": "ERROR",
    "LITELLM_MODE": "PRODUCTION",
    "DISABLE_ADMIN_UI": "True",
    "NO_DOCS": "True",
    "NO_REDOC": "True",
    # Requery has no keys here either; both listen on the loopback only.
    "LITELLM_MASTER_KEY": None,
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    "REDIS_URL": None,
    "DATABASE_URL": None,
}


@dataclass(frozen=True, slots=True)
class HitServer:
    """One server.

    Attributes:
        name: of its figures.
        child: its process.
        url: with the path to ask.
        bodies: file of requests, one per line.
        setup: its configuration.
        misses: counts its answers that were not hits, since the start.
    """

    name: str
    child: Child
    url: str
    bodies: Path
    setup: dict[str, Any]
    misses: Callable[[], Awaitable[int]] | None = None

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Its processes run while this is open."""
        self.child.resume()
        try:
            yield
        finally:
            self.child.pause()

    async def missed(self) -> int:
        """Answers that were not hits, since the start."""
        return 0 if self.misses is None else await self.misses()


class Servers:
    """All servers; a context manager that ends them.

    Args:
        folder: for logs and requests.
        known: queries for the caches.
        draws: number of requests to prepare.
        say: prints progress.
    """

    def __init__(
        self, folder: Path, known: Queries, draws: int, say: Callable[[str], None]
    ) -> None:
        self._folder, self._known, self._say = folder, known, say
        self._stack = AsyncExitStack()
        self._redis = RedisServer(folder)
        self.all: list[HitServer] = []
        """In the order of their turns."""
        self.open_loop: list[HitServer] = []
        """Those whose latency is measured: the generator alone, the bare route, and memory."""
        self.missing: dict[str, str] = {}
        """The reason why a server could not be measured, by name."""
        drawn = [known.popular() for _ in range(draws)]
        self._rewrites = self._write("rewrite.jsonl", [{"query": q} for q in drawn])
        self._chats = self._write("chat.jsonl", [chat(q) for q in drawn])

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def pin(self, server: Sequence[int], others: Sequence[int]) -> None:
        """Keep the servers on some cores, and Redis with the generator on the others."""
        for one in (*self.all, *self.open_loop):
            pin(one.child.pid, server)
        with self._redis.client() as client:
            pin(int(client.info("server")["process_id"]), others)

    async def start(self, *, litellm: bool) -> None:
        """Start all servers in turn and fill their caches."""
        await asyncio.to_thread(self._redis.start)
        self._stack.callback(self._redis.stop)
        bare, origin = await self._program(BARE, "loadtests.bench.bare_route", "/fixed/asked")
        shared = {
            "REQUERY_REDIS_URL": self._redis.url,
            "REQUERY_REDIS_READ_BUDGET_MS": _READ_BUDGET_MS,
        }
        memory = await self._requery(MEMORY, shared)
        await self._requery(REDIS, {**shared, "REQUERY_CACHE_MEMORY_BYTES": "0"})
        alone, _ = await self._program(GENERATOR, "loadtests.bare", "/")
        self.all.remove(alone)
        self.open_loop = [alone, bare, memory]
        if litellm:
            self._say("starting LiteLLM's proxy (the first time it is installed, some minutes)")
            try:
                with bare.awake():
                    await self._litellm(bare, origin)
            except (ServerFailed, NoReply, OSError) as error:
                self.missing[LITELLM] = str(error)

    async def _program(self, name: str, module: str, path: str) -> tuple[HitServer, str]:
        port = free_port()
        origin = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", module, str(port)]
        child = await self._stack.enter_async_context(Child(command, self._folder / f"{name}.log"))
        await child.until_answers(origin, path)
        setup = {"module": module}
        return self._add(HitServer(name, child, f"{origin}/rewrite", self._rewrites, setup)), origin

    async def _requery(self, tier: str, settings: dict[str, str]) -> HitServer:
        self._say(f"starting the service, with hits from {tier}")
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

        url = f"{target.url}/rewrite"
        return self._add(HitServer(tier, target, url, self._rewrites, dict(settings), misses))

    async def _litellm(self, bare: HitServer, origin: str) -> None:
        """Start LiteLLM's proxy, whose model provider is the bare route, and fill its cache."""
        home, release = await install_litellm(WORK / "litellm")
        settings = litellm_config(f"{origin}/fixed", self._redis.port)
        config = self._folder / "litellm.yaml"
        config.write_text(yaml.safe_dump(settings), encoding="utf-8")
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        command = [
            str(home / "bin" / "litellm"), "--config", str(config),
            "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1",
        ]  # fmt: skip
        child = await self._stack.enter_async_context(
            Child(command, self._folder / "litellm.log", _LITELLM_ENVIRONMENT)
        )
        await child.until_answers(url, "/health/liveliness")
        async with HttpTransport(url) as transport:
            for query in self._known.known:
                await post(transport, _CHAT, chat(query))

        async def asked() -> int:
            bare.child.resume()
            async with HttpTransport(origin) as transport:
                _, content = await transport.get("/fixed/asked")
            return int(orjson.loads(content)["asked"])

        setup = {"release": release, "num_workers": 1, "config": settings}
        self._add(HitServer(LITELLM, child, f"{url}{_CHAT}", self._chats, setup, asked))

    def _add(self, server: HitServer) -> HitServer:
        server.child.pause()
        self.all.append(server)
        return server

    def _write(self, name: str, bodies: Sequence[dict[str, Any]]) -> Path:
        path = (self._folder / name).absolute()
        path.write_bytes(b"\n".join(map(orjson.dumps, bodies)) + b"\n")
        return path


async def install_litellm(home: Path) -> tuple[Path, str]:
    """Install the newest release in an environment of its own, once; its folder and release.

    Raises:
        ServerFailed: it cannot be installed.
    """
    python, marker = str(home / "bin" / "python"), home / "installed"
    outside = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    if not marker.exists():
        await output(sys.executable, "-m", "venv", str(home), timeout_s=_INSTALL_S)
        command = (python, "-m", "pip", "install", "--quiet", "litellm[proxy]")
        await output(*command, timeout_s=_INSTALL_S, environment=outside)
        marker.touch()
    code = "from importlib.metadata import version; print(version('litellm'))"
    release = await output(python, "-c", code, timeout_s=_INSTALL_S, environment=outside)
    return home, release.decode().strip()


def litellm_config(provider: str, redis_port: int) -> dict[str, Any]:
    """The proxy's configuration file.

    Args:
        provider: address of the model provider, without a slash at the end.
        redis_port: of its cache.
    """
    parameters = {"model": "openai/bench", "api_base": provider, "api_key": "none"}
    cache = {"type": "redis", "host": "127.0.0.1", "port": redis_port, "ttl": 86_400}
    return {
        "model_list": [{"model_name": "bench", "litellm_params": parameters}],
        "litellm_settings": {
            "cache": True,
            "cache_params": cache,
            "set_verbose": False,
            "telemetry": False,
        },
    }


def chat(query: str) -> dict[str, Any]:
    """A request for the rewrites of a query as a chat completion."""
    message = {"role": "user", "content": query}
    return {"model": "bench", "messages": [message], "temperature": 0}
