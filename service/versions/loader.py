"""Starts and stops the engines of versions: one start at a time, within the memory budget."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge

from model_store.errors import ModelStoreError
from service.errors import RequeryError, VersionDraining, VersionInUse, VersionNotLoaded
from service.versions.memory_budget import MemoryBudget
from service.versions.registry import VersionRegistry
from service.versions.state import State
from service.versions.version import EngineFactory, ModelVersion, OnTokens, public_reason

_log = structlog.get_logger(component="loader")

Told = Callable[[ModelVersion], None]

LOADS = ("ready", "failed", "given_up")
UNLOADS = ("drained", "cut_off", "failed")


class LoaderMetrics:
    """Loads and unloads by how they ended, the state of each version, and memory.

    Args:
        registry: where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._loads = Counter(
            "requery_version_loads",
            "Attempts to load a version by how they ended",
            ["version", "result"],
            registry=registry,
        )
        self._unloads = Counter(
            "requery_version_unloads",
            "Unloads of a version by how they ended; cut_off broke off what was under way",
            ["version", "result"],
            registry=registry,
        )
        self._state = Gauge(
            "requery_version_state",
            "1 for the state that the version is in",
            ["version", "state"],
            registry=registry,
        )
        self._in_flight = Gauge(
            "requery_version_in_flight",
            "Requests and generations under way with the version",
            ["version"],
            registry=registry,
        )
        self._memory = Gauge(
            "requery_engine_memory_bytes",
            "Estimated memory of all engines (reserved), and what they may take (limit)",
            ["kind"],
            registry=registry,
        )

    def watch(self, versions: VersionRegistry, memory: MemoryBudget) -> None:
        """Read states, traffic and memory at every scrape."""
        versions.watch(self._watch)
        self._memory.labels("reserved").set_function(
            lambda: memory.reserved(v.manifest for v in versions if v.holds_memory)
        )
        if memory.limit_bytes is not None:
            self._memory.labels("limit").set(memory.limit_bytes)

    def loaded(self, version: str, result: str) -> None:
        """An attempt to load ended with one of :data:`LOADS`."""
        self._loads.labels(version, result).inc()

    def unloaded(self, version: str, result: str) -> None:
        """An unload ended with one of :data:`UNLOADS`."""
        self._unloads.labels(version, result).inc()

    def _watch(self, version: ModelVersion) -> None:
        for state in State:
            self._state.labels(version.name, state.value).set_function(
                partial(_is_in, version, state)
            )
        self._in_flight.labels(version.name).set_function(partial(_in_flight, version))
        for result in LOADS:
            self._loads.labels(version.name, result)


@dataclass(frozen=True, slots=True)
class _Work:
    """What is under way with one version."""

    kind: Literal["load", "unload"]
    task: asyncio.Task[None]


class Loader:
    """Runs the life cycle of all versions of this process.

    At most one of load and unload is under way with each version, and what is asked for twice is
    done once. Callers come and go; the work goes on.

    Args:
        versions: what there is to load.
        engines: makes the engine of a version.
        on_tokens: what to tell of the engine's work, by name of the version.
        memory: asked before an engine is made.
        metrics: where loads and unloads are counted.
        warm_queries: answered by an engine before requests are routed to it.
        load_timeout_s: longest that one load may take, its wait for others not counted.
        drain_timeout_s: longest that unloading waits for what is under way.
        used: names of versions that the routing document uses.
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
        # Engines that start side by side would each take longer, and longer than any of them alone.
        self._turn = asyncio.Lock()
        self._works: dict[str, _Work] = {}
        self._listeners: list[Told] = []
        self._told: dict[str, str] = {}
        metrics.watch(versions, memory)

    def on_change(self, told: Told) -> None:
        """Call ``told`` with each version that has been loaded, unloaded, or has failed."""
        self._listeners.append(told)

    def in_use(self) -> frozenset[str]:
        """Names of the versions that must not be unloaded."""
        default = (self._versions.default.name, self._versions.wanted_default)
        return frozenset((*default, *self._used()))

    def busy(self, name: str) -> bool:
        """Whether a load or an unload is under way with the version, up to its last step."""
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
        """Start loading, and return while it is under way.

        Does nothing if that is under way already or the version is ready. A version whose engine
        has died or does not answer gets another one, and what is under way with that engine fails
        at once; until then requests may be routed to it.

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
                "requests under way; load it again once GET /versions calls it available"
            )
        if work is not None or version.loading or version.up:
            return version
        others = (v.manifest for v in self._versions if v.holds_memory and v is not version)
        self._memory.admit(version.manifest, others)
        # From now on its memory is reserved, though its turn may come later.
        version.begin_load()
        self._begin("load", version, self._load(version))
        return version

    def begin_unload(self, name: str) -> ModelVersion:
        """Start unloading, and return while it is under way; a load under way is given up.

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
            self._told.pop(name, None)
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
            Exception: whatever kept the engine from starting.
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
        """Wait for what is under way with a version, at most ``timeout_s`` seconds.

        Raises:
            VersionNotLoaded: its load was given up, because it was unloaded meanwhile.
            Exception: whatever made it fail.
        """
        work = self._works.get(name)
        if work is None:
            return
        # wait() leaves the work alone when the caller gives up.
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
        if self._told.get(version.name) != reason:
            self._told[version.name] = reason
            expected = isinstance(error, RequeryError | ModelStoreError)
            _log.error(
                "version_failed",
                version=version.name,
                reason=str(error),
                exc_info=None if expected else error,
            )
        self._tell(version)

    async def close(self) -> None:
        """Give up what is under way and stop all engines, without draining."""
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
        # Nobody should wait for an engine that is lost as long as another one is being started.
        await version.stop_engine()
        async with self._turn:
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
        self._told.pop(version.name, None)
        self._tell(version)

    def _tell(self, version: ModelVersion) -> None:
        for told in self._listeners:
            told(version)


def _is_in(version: ModelVersion, state: State) -> float:
    return float(version.state is state)


def _in_flight(version: ModelVersion) -> float:
    return float(version.in_flight.count)
