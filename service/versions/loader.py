"""Starts and stops the engines of versions: one start at a time, within the memory budget."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import structlog

from model_store.errors import ModelStoreError
from service.errors import RequeryError, VersionDraining, VersionInUse, VersionNotLoaded
from service.versions.memory_budget import MemoryBudget
from service.versions.metrics import LoaderMetrics
from service.versions.registry import VersionRegistry
from service.versions.state import State
from service.versions.version import EngineFactory, ModelVersion, OnTokens, public_reason

_log = structlog.get_logger(component="loader")

Listener = Callable[[ModelVersion], None]


@dataclass(frozen=True, slots=True)
class _Work:
    """The load or unload of one version that is in progress."""

    kind: Literal["load", "unload"]
    task: asyncio.Task[None]


class Loader:
    """Runs the life cycle of all versions of this process.

    At most one load or unload of each version is in progress; a second request for the same joins
    it. The work goes on when its caller disconnects.

    Args:
        versions: the known versions.
        engines: makes the engine of a version.
        on_tokens: gives the callback for an engine's requests, by name of the version.
        memory: admits each engine before it is made.
        metrics: count loads and unloads.
        warm_queries: queries that an engine answers before requests are routed to it.
        load_timeout_s: limit on one load, without its time in the queue.
        drain_timeout_s: limit on the wait of an unload for what is in flight.
        used: names of the versions that the routing document uses.
    """

    def __init__(
        self,
        *,
        versions: VersionRegistry,
        engines: EngineFactory,
        on_tokens: Callable[[str], OnTokens],
        memory: MemoryBudget,
        metrics: LoaderMetrics,
        warm_queries: Sequence[str] = (),
        load_timeout_s: float | None = None,
        drain_timeout_s: float = 30.0,
        used: Callable[[], Collection[str]] = frozenset,
    ) -> None:
        self._versions = versions
        self._engines = engines
        self._on_tokens = on_tokens
        self._memory = memory
        self._metrics = metrics
        self._warm_queries = tuple(warm_queries)
        self._load_timeout_s = load_timeout_s
        self._drain_timeout_s = drain_timeout_s
        self._used = used
        # One start at a time: engines that start side by side take longer than one after the other.
        self._starting = asyncio.Lock()
        self._works: dict[str, _Work] = {}
        self._listeners: list[Listener] = []
        self._reported: dict[str, str] = {}
        """The last logged reason of a failure, by name."""
        metrics.watch(versions, memory)

    def on_change(self, listener: Listener) -> None:
        """Call ``listener`` with each version that has been loaded, unloaded, or has failed."""
        self._listeners.append(listener)

    def in_use(self) -> frozenset[str]:
        """Names of the versions that must not be unloaded."""
        default = (self._versions.default.name, self._versions.wanted_default)
        return frozenset((*default, *self._used()))

    def busy(self, name: str) -> bool:
        """Whether a load or an unload of the version is in progress."""
        return name in self._works

    def require_unused(self, name: str) -> None:
        """Check that a version may be unloaded.

        Raises:
            VersionInUse: it is the default, or the routing document uses it.
        """
        if name == self._versions.default.name:
            raise VersionInUse(
                f"version {name} is the default; make another version the default first"
            )
        if name in self.in_use():
            raise VersionInUse(
                f"the routing document uses version {name}; take it out there first "
                "(GET /routing shows where)"
            )

    def begin_load(self, name: str) -> ModelVersion:
        """Start loading in the background.

        Does nothing if the version is ready or being loaded. An engine that is dead or suspected
        is replaced, and what is in flight on it fails; requests may be routed to the version
        meanwhile.

        Raises:
            UnknownVersion: there is none of that name.
            VersionDraining: it is being unloaded.
            InsufficientMemory: it does not fit beside the others.
        """
        version = self._versions.get(name)
        work = self._works.get(name)
        if version.state is State.DRAINING or (work is not None and work.kind == "unload"):
            raise VersionDraining(
                f"version {name} is still being unloaded, with {version.in_flight.count} "
                "requests in flight; load it again once GET /versions calls it available"
            )
        if work is not None or version.loading or version.up:
            return version
        others = (v.manifest for v in self._versions if v.holds_memory and v is not version)
        self._memory.admit(version.manifest, others)
        # From now on its memory is reserved, though the load may be queued.
        version.begin_load()
        self._begin("load", version, self._load(version))
        return version

    def begin_unload(self, name: str) -> ModelVersion:
        """Start unloading in the background; a load in progress is given up.

        Raises:
            UnknownVersion: there is none of that name.
            VersionInUse: requests are routed to it.
        """
        version = self._versions.get(name)
        self.require_unused(name)
        work = self._works.get(name)
        if work is not None and work.kind == "unload":
            return version
        if not version.holds_memory:
            version.reset()
            self._reported.pop(name, None)
            return version
        version.begin_unload()
        if work is not None:
            # Before the load takes another step: it would end in a state that we have left.
            work.task.cancel()
        self._begin("unload", version, self._unload(version, work))
        return version

    async def load(self, name: str) -> ModelVersion:
        """Load a version and wait until it is ready.

        Raises:
            UnknownVersion, VersionDraining, InsufficientMemory: as :meth:`begin_load`.
            VersionNotLoaded: it was unloaded meanwhile.
            Exception: any other fault of the start.
        """
        version = self.begin_load(name)
        await self.finished(name)
        return version

    async def unload(self, name: str) -> ModelVersion:
        """Unload a version and wait until its engine is gone.

        Raises:
            UnknownVersion, VersionInUse: as :meth:`begin_unload`.
        """
        version = self.begin_unload(name)
        await self.finished(name)
        return version

    async def finished(self, name: str, *, timeout_s: float | None = None) -> None:
        """Wait for the load or unload of a version, at most ``timeout_s`` seconds.

        Raises:
            VersionNotLoaded: the load was given up because the version was unloaded meanwhile.
            Exception: the fault of the load or unload.
        """
        work = self._works.get(name)
        if work is None:
            return
        # wait() does not cancel the task if the caller is cancelled.
        await asyncio.wait((work.task,), timeout=timeout_s)
        if not work.task.done():
            return
        if work.task.cancelled():
            raise VersionNotLoaded(f"version {name} was unloaded before it was ready")
        work.task.result()

    def fail(self, version: ModelVersion, error: BaseException) -> None:
        """Record that a version cannot be loaded; logs each reason once."""
        version.fail(error)
        self._failed(version, error)

    def _failed(self, version: ModelVersion, error: BaseException) -> None:
        reason = public_reason(error)
        self._metrics.loaded(version.name, "failed")
        if self._reported.get(version.name) != reason:
            self._reported[version.name] = reason
            expected = isinstance(error, RequeryError | ModelStoreError)
            _log.error(
                "version_failed",
                version=version.name,
                reason=str(error),
                exc_info=None if expected else error,
            )
        self._notify(version)

    async def close(self) -> None:
        """Cancel loads and unloads and stop all engines, without draining."""
        tasks = [work.task for work in self._works.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._versions.close()

    def _begin(
        self,
        kind: Literal["load", "unload"],
        version: ModelVersion,
        work: Coroutine[Any, Any, None],
    ) -> None:
        task = asyncio.create_task(work, name=f"{kind}-{version.name}")
        self._works[version.name] = _Work(kind, task)
        task.add_done_callback(partial(self._ended, kind, version))

    async def _load(self, version: ModelVersion) -> None:
        # Not only in version.load(): requests must not wait for a lost engine during the queue.
        await version.stop_engine()
        async with self._starting:
            await version.load(
                self._engines,
                self._on_tokens(version.name),
                warm_queries=self._warm_queries,
                timeout_s=self._load_timeout_s,
            )

    async def _unload(self, version: ModelVersion, work: _Work | None) -> None:
        if work is not None:
            await asyncio.wait((work.task,))
        left = await version.unload(drain_timeout_s=self._drain_timeout_s)
        self._metrics.unloaded(version.name, "cut_off" if left else "drained")
        _log.info("version_unloaded", version=version.name, cut_off=left)

    def _ended(
        self, kind: Literal["load", "unload"], version: ModelVersion, task: asyncio.Task[None]
    ) -> None:
        work = self._works.get(version.name)
        if work is not None and work.task is task:
            del self._works[version.name]
        error = None if task.cancelled() else task.exception()
        if kind == "load":
            if task.cancelled():
                self._metrics.loaded(version.name, "given_up")
            elif error is not None:
                if version.loading:  # the fault came before version.load() could take it
                    version.fail(error)
                self._failed(version, error)
                return
            else:
                self._metrics.loaded(version.name, "ready")
                self._versions.settle()
        elif error is not None:
            self._metrics.unloaded(version.name, "failed")
            _log.error("unload_failed", version=version.name, exc_info=error)
        self._reported.pop(version.name, None)
        self._notify(version)

    def _notify(self, version: ModelVersion) -> None:
        for listener in self._listeners:
            listener(version)
