"""Which versions every replica should have loaded, and the task that sees to it on this one.

The document ``roster`` holds the wish: ``{"versions": [name, ...]}``. What a replica keeps loaded
is that, and what its routing uses whether listed or not. A replica that cannot load a version
keeps its reason to itself, tries again more and more rarely, and serves what it has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Gauge

from service.control.documents import Document
from service.control.metrics import ControlMetrics
from service.control.store import DocumentStore
from service.errors import InsufficientMemory, RequeryError
from service.resilience.backoff import Backoff
from service.versions.loader import Loader
from service.versions.registry import VersionRegistry
from service.versions.state import State
from service.versions.version import ModelVersion

_log = structlog.get_logger(component="roster")

Find = Callable[[str], Awaitable[ModelVersion]]

DOCUMENT = "roster"
SCHEMA = 1


class ReconcilerMetrics:
    """How far this replica is from what it should have loaded.

    Args:
        registry: where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._missing = Gauge(
            "requery_roster_missing",
            "Versions that this replica should have loaded and that are not ready here",
            registry=registry,
        )

    def watch(self, missing: Callable[[], int]) -> None:
        """Read ``missing`` at every scrape."""
        self._missing.set_function(missing)


class Reconciler:
    """Lets operators say which versions are loaded, and keeps this replica to it.

    Args:
        document: from :func:`desired_versions_document`.
        versions: what this replica knows.
        loader: loads and unloads.
        metrics: where it is shown how far this replica is.
        backoff: when a version that could not be loaded is tried again.
        find: looks a version up in the store that came into it after this process had started;
            raises a :class:`~service.errors.RequeryError` if it cannot be had.
        poll_s: longest that a change, of the routing document say, goes unnoticed.
    """

    def __init__(
        self,
        *,
        document: Document[frozenset[str]],
        versions: VersionRegistry,
        loader: Loader,
        metrics: ReconcilerMetrics,
        find: Find | None = None,
        backoff: Backoff | None = None,
        poll_s: float = 1.0,
    ) -> None:
        self._document = document
        self._versions = versions
        self._loader = loader
        self._find = find
        self._backoff = backoff or Backoff(5.0, 300.0)
        self._poll_s = poll_s
        self._nudged = asyncio.Event()
        self._asked: set[str] = set()
        """Being loaded, and on their way into the document."""
        self._told: dict[str, str] = {}
        """Why a version cannot be found, by name."""
        document.on_change(lambda _names: self.nudge())
        loader.on_change(self._changed)
        metrics.watch(lambda: len(self._missing()))

    @property
    def durable(self) -> bool:
        """Whether all replicas follow the roster, and it survives a restart."""
        return self._document.durable

    def wanted(self) -> frozenset[str]:
        """Names of the versions that this replica should have loaded, known to it or not."""
        return self._document.value | self._loader.in_use() | self._asked

    async def ensure(self, name: str, *, author: str) -> ModelVersion:
        """Start loading a version here, and have all replicas do so, now and after a restart.

        Args:
            name: of the version.
            author: for the audit trail.

        Raises:
            UnknownVersion: there is none of that name, also not in the store.
            VersionDraining: it is being unloaded here.
            InsufficientMemory: it does not fit beside the others here; nobody is told to load it.
            DocumentStoreUnavailable, NewerSchema: the wish could not be stored; the load is
                given up.
        """
        await self._know(name)
        version = self._loader.begin_load(name)
        self._backoff.forget(name)
        self._asked.add(name)
        try:
            if name not in self._document.value:
                await self._document.update(
                    lambda names: names | {name}, action="version.load", author=author
                )
        finally:
            self._asked.discard(name)
            # If the wish was not stored, the load is given up as one that nobody wants.
            self.nudge()
        return version

    async def remove(self, name: str, *, author: str) -> ModelVersion | None:
        """Start unloading a version here, and have all replicas do so.

        Args:
            name: of the version.
            author: for the audit trail.

        Returns:
            ``None`` if no such version is known here: other replicas were told all the same.

        Raises:
            UnknownVersion: there is none of that name here, nor in the roster.
            VersionInUse: requests are routed to it.
            DocumentStoreUnavailable, NewerSchema: the wish could not be stored; nothing is
                unloaded.
        """
        if name not in self._document.value:
            self._versions.get(name)
        self._loader.require_unused(name)
        if name in self._document.value:
            await self._document.update(
                lambda names: names - {name}, action="version.unload", author=author
            )
        return self._loader.begin_unload(name) if name in self._versions else None

    def nudge(self) -> None:
        """Look soon whether something is to be done."""
        self._nudged.set()

    async def run(self) -> None:
        """Keep to the roster; ends when it is cancelled, and never raises."""
        while True:
            self._nudged.clear()
            try:
                await self._look_up()
                self._reconcile()
            except Exception:  # noqa: BLE001 - it must go on for the versions to come
                _log.exception("roster_not_kept")
            with suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await self._nudged.wait()

    def _reconcile(self) -> None:
        """Start what can be started; the end of each piece of work nudges for the next."""
        wanted = self.wanted()
        for version in self._versions:
            if version.name not in wanted and version.state is not State.AVAILABLE:
                self._loader.begin_unload(version.name)
        if any(version.loading for version in self._versions):
            return
        for version in self._in_order(wanted):
            idle = not version.holds_memory and not self._loader.busy(version.name)
            if idle and self._backoff.due(version.name) and self._try(version):
                return

    def _try(self, version: ModelVersion) -> bool:
        """Begin to load a version; whether that is under way now."""
        try:
            self._loader.begin_load(version.name)
        except InsufficientMemory as error:
            if any(other.state is State.DRAINING for other in self._versions):
                return False  # soon there may be room
            self._loader.fail(version, error)
            return False
        return True

    def _in_order(self, wanted: frozenset[str]) -> Iterable[ModelVersion]:
        """Known versions among ``wanted``, those that requests wait for first."""
        default = self._versions.default.name
        used = self._loader.in_use()
        known = [version for version in self._versions if version.name in wanted]
        return sorted(known, key=lambda v: (v.name != default, v.name not in used, v.name))

    def _missing(self) -> frozenset[str]:
        return self.wanted() - {version.name for version in self._versions if version.up}

    async def _know(self, name: str) -> None:
        """Look for an unknown version in the store.

        Raises:
            RequeryError: it cannot be had.
        """
        if name not in self._versions and self._find is not None:
            found = self._versions.add(await self._find(name))
            _log.info("version_found", version=found.name, digest=found.digest)

    async def _look_up(self) -> None:
        """Look for all unknown versions that should be loaded; tells once of each that fails."""
        for name in sorted(self.wanted()):
            if name in self._versions or not self._backoff.due(name):
                continue
            try:
                await self._know(name)
                self._versions.get(name)
            except RequeryError as error:
                self._backoff.failed(name)
                if self._told.get(name) != str(error):
                    self._told[name] = str(error)
                    _log.error("version_not_found", version=name[:64], reason=str(error))
            else:
                self._told.pop(name, None)

    def _changed(self, version: ModelVersion) -> None:
        if version.state is State.FAILED:
            self._backoff.failed(version.name)
        else:
            self._backoff.forget(version.name)
        self.nudge()


def desired_versions_document(
    document_store: DocumentStore, *, initial: Iterable[str], metrics: ControlMetrics
) -> Document[frozenset[str]]:
    """The document ``roster``.

    Args:
        document_store: where it is stored.
        initial: versions that are loaded as long as nobody has said anything: the configured
            default. It stays loaded when another version becomes the default, so that going back
            costs nothing, until somebody unloads it.
        metrics: of all control documents.
    """
    return Document(
        document_store,
        DOCUMENT,
        schema=SCHEMA,
        parse=_parse,
        initial=frozenset(initial),
        dump=lambda names: {"versions": sorted(names)},
        metrics=metrics,
    )


def _parse(body: dict[str, Any]) -> frozenset[str]:
    names = body.get("versions")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError('"versions" must be a list of names')
    return frozenset(names)
