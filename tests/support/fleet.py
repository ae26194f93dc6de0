"""Versions a, b and c on scripted engines, with all that loads and unloads them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager

from prometheus_client import CollectorRegistry

from model_store.manifest import Manifest
from service.control.metrics import ControlMetrics
from service.control.store import DocumentStore, LocalDocumentStore
from service.resilience.backoff import Backoff
from service.versions.desired import DesiredVersions
from service.versions.loader import Loader
from service.versions.memory_budget import MemoryBudget
from service.versions.metrics import LoaderMetrics, ReconcilerMetrics
from service.versions.reconciler import Reconciler
from service.versions.registry import VersionRegistry
from service.versions.version import ModelVersion
from tests.support.versions import Engines, make_manifest

MIB = 2**20


def memory(limit_mib: int | None, sizes_mib: Mapping[str, int] | None = None) -> MemoryBudget:
    """A budget in which every engine takes 100 MiB, but for those in ``sizes_mib``."""

    def estimate(manifest: Manifest) -> int:
        return (sizes_mib or {}).get(manifest.name, 100) * MIB

    return MemoryBudget(None if limit_mib is None else limit_mib * MIB, estimate)


class Fleet:
    """One replica, but for its HTTP edge and its pipeline; ``a`` is the default.

    Args:
        engines: default makes engines that work at once.
        budget: default is none.
        document_store: default is one of its own.
        names: of the versions known from the start.
        store: versions that can be found later.
        drain_timeout_s: see :class:`service.versions.loader.Loader`.
        first_retry_s: see :class:`service.resilience.backoff.Backoff`.
    """

    def __init__(
        self,
        *,
        engines: Engines | None = None,
        budget: MemoryBudget | None = None,
        document_store: DocumentStore | None = None,
        names: Iterable[str] = "abc",
        store: Iterable[str] | None = None,
        drain_timeout_s: float = 60.0,
        first_retry_s: float = 3600.0,
    ) -> None:
        self.registry = CollectorRegistry()
        self.engines = engines or Engines()
        self.document_store = document_store or LocalDocumentStore()
        self.versions = VersionRegistry(
            [ModelVersion(make_manifest(n)) for n in names], default="a"
        )
        self.memory = budget or memory(None)
        self.used: set[str] = set()
        """Names that the routing document uses."""
        self.tokens: list[tuple[str, int, int]] = []
        self.store = None if store is None else set(store)
        self.loader = Loader(
            versions=self.versions,
            engines=self.engines,
            on_tokens=lambda name: lambda p, g: self.tokens.append((name, p, g)),
            memory=self.memory,
            metrics=LoaderMetrics(self.registry),
            warm_queries=("steel stake",),
            load_timeout_s=60,
            drain_timeout_s=drain_timeout_s,
            used=lambda: self.used,
        )
        self.desired = DesiredVersions(
            self.document_store, initial=["a"], metrics=ControlMetrics(self.registry)
        )
        self.reconciler = Reconciler(
            desired=self.desired,
            versions=self.versions,
            loader=self.loader,
            metrics=ReconcilerMetrics(self.registry),
            find=self._finder(),
            backoff=Backoff(first_retry_s, 3600.0),
            poll_s=0.01,
        )

    def __getitem__(self, name: str) -> ModelVersion:
        return self.versions.get(name)

    @property
    def states(self) -> dict[str, str]:
        """State of each version by name."""
        return {version.name: version.state.value for version in self.versions}

    def metric(self, name: str, **labels: str) -> float | None:
        """Value of one sample."""
        return self.registry.get_sample_value(name, labels)

    @asynccontextmanager
    async def following(self) -> AsyncIterator[Fleet]:
        """Keep to the roster for a block, and stop everything after it."""
        await self.desired.document.refresh()
        tasks = [
            asyncio.create_task(self.document_store.run()),
            asyncio.create_task(self.reconciler.run()),
        ]
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.loader.close()
            await self.document_store.close()

    def _finder(self) -> Callable[[str], Awaitable[ModelVersion]] | None:
        store = self.store
        if store is None:
            return None

        async def find(name: str) -> ModelVersion:
            from service.errors import UnknownVersion

            await asyncio.sleep(0)
            if name not in store:
                raise UnknownVersion(f"version {name} is not in the model store")
            return ModelVersion(make_manifest(name))

        return find
