"""Keeps this replica to the desired versions.

A replica keeps loaded what the document ``roster`` desires and what its routing uses. If it cannot
load a version, it tries again with growing pauses, and serves what it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress

import structlog

from service.errors import InsufficientMemory, RequeryError
from service.resilience.backoff import Backoff
from service.versions.desired import DesiredVersions
from service.versions.loader import Loader
from service.versions.metrics import ReconcilerMetrics
from service.versions.registry import VersionRegistry
from service.versions.state import State
from service.versions.version import ModelVersion

_log = structlog.get_logger(component="roster")

FindVersion = Callable[[str], Awaitable[ModelVersion]]
"""Looks up a version that came into the store after the start; raises a RequeryError."""


class Reconciler:
    """Loads and unloads versions until this replica has the desired ones.

    Args:
        desired: the versions that all replicas should have loaded.
        versions: the versions that this replica knows.
        loader: loads and unloads.
        metrics: show how many versions are missing.
        find: looks up unknown versions; ``None`` if there can be none.
        backoff: when to retry a version that could not be loaded.
        poll_s: the longest time until a change (of the routing document, say) is noticed.
    """

    def __init__(
        self,
        *,
        desired: DesiredVersions,
        versions: VersionRegistry,
        loader: Loader,
        metrics: ReconcilerMetrics,
        find: FindVersion | None = None,
        backoff: Backoff | None = None,
        poll_s: float = 1.0,
    ) -> None:
        self._desired = desired
        self._versions = versions
        self._loader = loader
        self._find = find
        self._backoff = backoff or Backoff(5.0, 300.0)
        self._poll_s = poll_s
        self._woken = asyncio.Event()
        self._being_added: set[str] = set()
        """Loading here while the document is being written."""
        self._reported: dict[str, str] = {}
        """The last logged reason why a version cannot be found, by name."""
        desired.on_change(self.wake)
        loader.on_change(self._changed)
        metrics.watch(lambda: len(self._missing()))

    @property
    def durable(self) -> bool:
        """Whether loads and unloads reach all replicas and survive a restart."""
        return self._desired.durable

    def desired(self) -> frozenset[str]:
        """Names of the versions that this replica should have loaded, known to it or not."""
        return self._desired.names | self._loader.in_use() | self._being_added

    async def load(self, name: str, *, author: str) -> ModelVersion:
        """Start loading a version here and on all replicas, also after a restart.

        Args:
            name: of the version.
            author: for the audit trail.

        Raises:
            UnknownVersion: there is none of that name, also not in the store.
            VersionDraining: it is being unloaded here.
            InsufficientMemory: it does not fit here; other replicas do not load it either.
            DocumentStoreUnavailable, NewerSchema: the change could not be stored; the load is
                given up.
        """
        await self._discover(name)
        version = self._loader.begin_load(name)
        self._backoff.forget(name)
        self._being_added.add(name)
        try:
            await self._desired.add(name, author=author)
        finally:
            self._being_added.discard(name)
            # If the change was not stored, the version is not desired, and the load is given up.
            self.wake()
        return version

    async def unload(self, name: str, *, author: str) -> ModelVersion | None:
        """Start unloading a version here and on all replicas.

        Args:
            name: of the version.
            author: for the audit trail.

        Returns:
            ``None`` if it is not known here; other replicas unload it.

        Raises:
            UnknownVersion: it is neither known here nor desired.
            VersionInUse: requests are routed to it.
            DocumentStoreUnavailable, NewerSchema: the change could not be stored; nothing is
                unloaded.
        """
        if name not in self._desired:
            self._versions.get(name)
        self._loader.require_unused(name)
        await self._desired.remove(name, author=author)
        return self._loader.begin_unload(name) if name in self._versions else None

    def wake(self) -> None:
        """Reconcile soon."""
        self._woken.set()

    async def run(self) -> None:
        """Reconcile until cancelled; never raises."""
        while True:
            self._woken.clear()
            try:
                await self._discover_desired()
                self._reconcile()
            except Exception:  # noqa: BLE001 - it must go on for the versions to come
                _log.exception("roster_not_kept")
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await self._woken.wait()

    def _reconcile(self) -> None:
        """Start what can be started; each load and unload wakes us when it ends."""
        desired = self.desired()
        for version in self._versions:
            if version.name not in desired and version.state is not State.AVAILABLE:
                self._loader.begin_unload(version.name)
        if any(version.loading for version in self._versions):
            return
        for version in self._by_urgency(desired):
            idle = not version.holds_memory and not self._loader.busy(version.name)
            if idle and self._backoff.due(version.name) and self._try(version):
                return

    def _try(self, version: ModelVersion) -> bool:
        """Begin to load a version; whether a load is in progress now."""
        try:
            self._loader.begin_load(version.name)
        except InsufficientMemory as error:
            if any(other.state is State.DRAINING for other in self._versions):
                return False  # there may be room soon
            self._loader.fail(version, error)
            return False
        return True

    def _by_urgency(self, names: frozenset[str]) -> Iterable[ModelVersion]:
        """Known versions among ``names``: the default first, then those that are routed to."""
        default = self._versions.default.name
        used = self._loader.in_use()
        known = [version for version in self._versions if version.name in names]
        return sorted(known, key=lambda v: (v.name != default, v.name not in used, v.name))

    def _missing(self) -> frozenset[str]:
        return self.desired() - {version.name for version in self._versions if version.up}

    async def _discover(self, name: str) -> None:
        """Look for an unknown version in the store.

        Raises:
            RequeryError: it is not there, or cannot be used.
        """
        if name not in self._versions and self._find is not None:
            found = self._versions.add(await self._find(name))
            _log.info("version_found", version=found.name, digest=found.digest)

    async def _discover_desired(self) -> None:
        """Look for all desired versions that are unknown; logs each reason once."""
        for name in sorted(self.desired()):
            if name in self._versions or not self._backoff.due(name):
                continue
            try:
                await self._discover(name)
                self._versions.get(name)
            except RequeryError as error:
                self._backoff.failed(name)
                if self._reported.get(name) != str(error):
                    self._reported[name] = str(error)
                    _log.error("version_not_found", version=name[:64], reason=str(error))
            else:
                self._reported.pop(name, None)

    def _changed(self, version: ModelVersion) -> None:
        if version.state is State.FAILED:
            self._backoff.failed(version.name)
        else:
            self._backoff.forget(version.name)
        self.wake()
