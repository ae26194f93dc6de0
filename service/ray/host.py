"""One engine in a replica of its own, called from other replicas.

The same :class:`Supervisor` as in a single process supervises it, but a lost engine ends the
replica, and Ray Serve starts another one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import structlog
from prometheus_client import CollectorRegistry

from service.config.settings import Settings
from service.engine.protocol import Engine
from service.errors import EngineUnavailable, QueryTooLong
from service.ray.wire import Item, Refusal, Tagged, Tokens
from service.versions.metrics import SupervisorMetrics
from service.versions.registry import VersionRegistry
from service.versions.supervisor import Supervisor
from service.versions.version import EngineFactory, ModelVersion

_log = structlog.get_logger(component="ray")

_T = TypeVar("_T")

BEAT_S = 0.5
"""Seconds between two signs of life of an engine that has no candidate yet; well below the second
after which the supervisor of a caller suspects it."""
_CLOSE_S = 30.0
"""Limit on closing the engine before the replica ends."""


class EngineHost:
    """Runs the engine of one version, and ends the process when that engine is lost.

    Args:
        version: the version.
        engines: makes its engine.
        settings: time limits and warm-up queries.
        leave: ends this process; called once, after a lost engine has been closed.
    """

    def __init__(
        self,
        version: ModelVersion,
        engines: EngineFactory,
        settings: Settings,
        *,
        leave: Callable[[], None],
    ) -> None:
        self._version = version
        self._engines = engines
        self._settings = settings
        self._leave = leave
        self._tokens: list[tuple[int, int]] = []
        self._leaving: asyncio.Task[None] | None = None
        self._supervisor = Supervisor(
            versions=VersionRegistry([version], default=version.name),
            loader=self,
            desired=lambda: (version.name,),
            metrics=SupervisorMetrics(CollectorRegistry()),
            stall_s=settings.engine_stall_s,
        )
        self._watching: asyncio.Task[None] | None = None

    async def load(self) -> None:
        """Load, warm up and start to supervise.

        Raises:
            LoadFailed: it took too long, or the engine gave no rewrite.
            Exception: any other fault of the start.
        """
        await self._version.load(
            self._engines,
            self._count,
            warm_queries=self._settings.warm_up(),
            timeout_s=self._settings.load_timeout_s,
        )
        self._watching = asyncio.create_task(self._supervisor.run(), name="supervisor")

    @property
    def up(self) -> bool:
        """Whether the engine is alive and not suspected."""
        return self._version.up

    async def generate(self, query: str) -> AsyncGenerator[Item | Refusal]:
        """The candidates for ``query``, each as soon as it has finished; an error comes last.

        Closing the iterator ends the engine's work.
        """
        try:
            stream: Any = self._engine.generate(query)
            async with aclosing(stream), aclosing(with_beats(stream, BEAT_S)) as steps:
                async for candidate in steps:
                    if candidate is not None or not self._version.suspected:
                        yield Item(candidate, self._drain())
        except QueryTooLong as error:
            yield Refusal.of(error)
        except EngineUnavailable as error:
            self._version.generated(ok=False)
            yield Refusal.of(error)
        except Exception:
            self._version.generated(ok=False)
            raise
        else:
            self._version.generated(ok=True)

    async def tag(self, pairs: Sequence[tuple[str, str]]) -> Tagged | Refusal:
        """Relevance of each ``(query, rewrite)``."""
        try:
            relevance = await self._engine.tag(pairs)
        except (QueryTooLong, EngineUnavailable) as error:
            return Refusal.of(error)
        return Tagged(relevance, self._drain())

    async def close(self) -> None:
        """Stop supervising, and the engine."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        await self._version.close()

    def busy(self, _name: str) -> bool:
        """Whether the replica is ending: the supervisor's view of a replacement."""
        return self._leaving is not None

    def begin_load(self, _name: str) -> None:
        """End the replica, so that Ray Serve replaces it."""
        if self._leaving is None:
            self._leaving = asyncio.create_task(self._end(), name="leave")

    async def _end(self) -> None:
        try:
            # A hung engine core would keep the memory of its device.
            async with asyncio.timeout(_CLOSE_S):
                await self._version.stop_engine()
        except Exception:  # noqa: BLE001 - the process ends anyway
            _log.exception("engine_not_closed")
        finally:
            self._leave()

    @property
    def _engine(self) -> Engine:
        """The engine, suspected or not.

        Requests wait for a silent engine because Ray Serve prefers replicas with few requests in
        flight: one that failed fast would get them all.

        Raises:
            EngineUnavailable: it has been lost.
        """
        engine = self._version.unchecked_engine
        if engine is None:
            raise EngineUnavailable("the engine of this replica is lost; another one takes over")
        return engine

    def _count(self, prompt: int, generated: int) -> None:
        self._tokens.append((prompt, generated))

    def _drain(self) -> Tokens:
        taken, self._tokens = tuple(self._tokens), []
        return taken


async def with_beats(stream: AsyncIterator[_T], every_s: float) -> AsyncGenerator[_T | None]:
    """The items of ``stream``, and ``None`` after each ``every_s`` seconds without one."""
    while True:
        step = asyncio.ensure_future(anext(stream))
        try:
            while not (await asyncio.wait((step,), timeout=every_s))[0]:
                yield None
            try:
                item = step.result()
            except StopAsyncIteration:
                return
            yield item
        finally:
            step.cancel()
            await asyncio.gather(step, return_exceptions=True)
