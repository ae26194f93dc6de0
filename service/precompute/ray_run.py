"""``requery precompute --ray``: the batch of a run, spread over a Ray cluster by Ray Data.

Each worker of the pool has an engine of its own and writes to the Redis that all replicas share, as
a run in one process does; the outcomes come back to one journal. The next run finds in Redis what a
killed run had done and not recorded. Only this module and :mod:`service.ray.app` import ray.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import ray.data

from model_store.store import Store, open_store
from service.cache.lifetimes import Lifetimes
from service.config.settings import Settings
from service.errors import RequeryError
from service.precompute.errors import PrecomputeError
from service.precompute.fillers import EngineFiller, redis_tier
from service.precompute.journal import Journal, Result
from service.precompute.plan import Plan
from service.precompute.run import BaseRun, Outcome
from service.telemetry.threads import in_daemon_thread
from service.versions.from_store import version_finder
from service.versions.version import EngineFactory

Batch = dict[str, Any]
"""Columns, as arrays of equal length."""

_THREADS = 2
"""Threads of a CPU engine by default."""
_MOST_BATCH = 64
"""Queries of one task: enough to fill an engine, few enough to stop soon."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerPool:
    """The workers: what each of them needs, and how many there may be.

    Attributes:
        settings: of the service.
        version: name of the version.
        digest: of that version, the same on all machines.
        engines: makes the factory of engines out of a store.
        concurrency: queries in progress in each worker at a time.
    """

    settings: Settings
    version: str
    digest: str
    engines: Callable[[Store, Settings], EngineFactory]
    concurrency: int

    async def connect(self) -> None:
        """Connect to the cluster.

        Raises:
            PrecomputeError: it cannot be reached.
        """
        try:
            await in_daemon_thread(_connect)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise PrecomputeError(
                f"no Ray cluster answers ({error}); start one ('ray start --head'), or correct "
                "RAY_ADDRESS"
            ) from error

    def resources(self) -> dict[str, float]:
        """Resources of one worker: a GPU if the cluster has any, else cores."""
        gpus = ray.cluster_resources().get("GPU", 0)
        if self.settings.device == "cuda" or (self.settings.device == "auto" and gpus):
            return {"num_gpus": 1}
        return {"num_cpus": self.settings.engine_threads or _THREADS}

    def capacity(self) -> int:
        """Limit on the workers of the cluster; at least one."""
        have = ray.cluster_resources()
        ((kind, each),) = self.resources().items()
        return max(1, int(have.get("GPU" if kind == "num_gpus" else "CPU", 0) // each))


class RayRun(BaseRun):
    """A run on the engines of a cluster.

    Args:
        plan: all queries.
        head: how many of them, from the most frequent.
        pool: the workers, connected to the cluster.
        journal: of this run.
        batch: limit on the queries of one task.
        workers: limit on the engines; ``None`` for as many as fit.
    """

    def __init__(
        self,
        plan: Plan,
        head: int,
        *,
        pool: WorkerPool,
        journal: Journal,
        batch: int,
        workers: int | None = None,
    ) -> None:
        # Each result is recorded at once.
        super().__init__(plan, head, journal=journal, flush_at=1)
        self._pool = pool
        self._batch = min(batch, _MOST_BATCH)
        self._workers = workers

    async def _all(self, places: Sequence[int]) -> None:
        if not places or self._stop.is_set():
            return
        try:
            batches = await in_daemon_thread(lambda: self._spread(places))
            while (batch := await in_daemon_thread(lambda: next(batches, None))) is not None:
                self._note(*_read(batch))
                if self._stop.is_set():
                    return
        except ray.exceptions.RayError as error:
            raise PrecomputeError(
                f"the cluster failed ({_first_line(error)}); run this again to go on"
            ) from error

    def _spread(self, places: Sequence[int]) -> Iterator[Batch | None]:
        """Start the work; yields finished batches in any order."""
        rows = [{"place": place, "query": _bytes(self._plan.queries[place])} for place in places]
        pieces = -(-len(rows) // self._batch)
        most = min(self._workers or self._pool.capacity(), pieces)
        done = ray.data.from_items(rows, override_num_blocks=pieces).map_batches(
            Worker,
            fn_constructor_args=(self._pool,),
            batch_size=self._batch,
            batch_format="numpy",
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most),
            **self._pool.resources(),
        )
        return iter(done.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0))


class Worker:
    """One engine in a process of Ray Data.

    Args:
        pool: the pool that it belongs to.

    Raises:
        Exception: any fault of the engine's start.
    """

    def __init__(self, pool: WorkerPool) -> None:
        self._pool = pool
        self._runner = asyncio.Runner()
        self._stack = AsyncExitStack()
        self._filler: EngineFiller | None = None
        self._runner.run(self._start())

    def __call__(self, batch: Batch) -> Batch:
        """The result, and the reason of a failure, of each query."""
        queries = [bytes(query).decode("utf-8", "surrogatepass") for query in batch["query"]]
        outcomes = self._runner.run(self._fill(queries))
        return {
            "place": batch["place"],
            "result": np.array([outcome.result.value for outcome in outcomes]),
            "reason": np.array([outcome.reason for outcome in outcomes]),
        }

    async def _fill(self, queries: Sequence[str]) -> list[Outcome]:
        if self._filler is None:
            await self._start()
        filler = self._filler
        assert filler is not None  # noqa: S101 - for the type checker
        turn = asyncio.Semaphore(filler.concurrency)

        async def one(query: str) -> Outcome:
            async with turn:
                try:
                    return (await filler.fill([query]))[0]
                except PrecomputeError as error:
                    self._filler = None
                    return Outcome(Result.FAILED, str(error))

        outcomes = list(await asyncio.gather(*map(one, queries)))
        if self._filler is None:
            # The engine has died: the next batch starts another one, and the run retries these.
            await self._stack.aclose()
        return outcomes

    async def _start(self) -> None:
        pool = self._pool
        settings = _with_resources(pool.settings)
        store = open_store(settings.sources(), settings.cache_dir)
        version = await version_finder(store, settings)(pool.version)
        if version.digest != pool.digest:
            raise PrecomputeError(
                f"version {version.name} is not the same on all machines of the cluster"
            )
        lifetimes = Lifetimes.of(settings)
        redis = redis_tier(settings, lifetimes, pool.concurrency)
        self._stack.push_async_callback(redis.close)
        await redis.start()
        engine = await pool.engines(store, settings)(version.manifest, _uncounted)
        self._stack.push_async_callback(engine.close)
        await engine.start()
        self._filler = EngineFiller(
            version,
            engine,
            redis,
            lifetimes=lifetimes,
            bound_s=settings.generation_timeout_s,
            concurrency=pool.concurrency,
        )


def _connect() -> None:
    ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    # The command shows its own progress bar.
    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)


def _with_resources(settings: Settings) -> Settings:
    """With as many threads as this worker has cores."""
    return settings.model_copy(update={"engine_threads": settings.engine_threads or _THREADS})


def _uncounted(_prompt: int, _generated: int) -> None:
    pass


def _bytes(query: str) -> bytes:
    # Arrow's text is UTF-8, which cannot hold a lone surrogate.
    return query.encode("utf-8", "surrogatepass")


def _read(batch: Batch) -> tuple[list[int], list[Outcome]]:
    rows = zip(batch["result"], batch["reason"], strict=True)
    outcomes = [Outcome(Result(str(result)), str(reason)) for result, reason in rows]
    return [int(place) for place in batch["place"]], outcomes


def _first_line(error: Exception) -> str:
    cause = error.cause if isinstance(error, ray.exceptions.RayTaskError) else error
    if isinstance(cause, PrecomputeError | RequeryError):
        return str(cause)
    lines = str(error).strip().splitlines()
    return (lines[-1] if lines else type(error).__name__)[:300]
