"""The model versions that this process knows, and the default among them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping

import structlog

from service.errors import UnknownVersion, VersionNotLoaded
from service.versions.state import State
from service.versions.version import ModelVersion

_log = structlog.get_logger(component="versions")

_WHY_NOT: Mapping[State, str] = {
    State.AVAILABLE: "is known and not loaded; leave model_version out to use the default, or "
    "load it first with POST /versions/<name>/load",
    State.LOADING: "is still loading; try again shortly",
    State.WARMING: "is still warming up; try again shortly",
    State.DRAINING: "is being unloaded; leave model_version out to use the default",
    State.FAILED: "could not be loaded; GET /versions says why",
}
"""By state, except ready."""


class VersionRegistry:
    """All known versions by name, and the default among them.

    Args:
        versions: the known versions of the store.
        default: name of the version that serves requests without a pin.

    Raises:
        UnknownVersion: ``default`` is not among ``versions``.
    """

    def __init__(self, versions: Iterable[ModelVersion], *, default: str) -> None:
        self._versions = {v.name: v for v in versions}
        if default not in self._versions:
            known = ", ".join(sorted(self._versions)) or "none"
            raise UnknownVersion(
                f"default version {default!a} is not in the store (known: {known})"
            )
        self._default = self._versions[default]
        self._wanted = default
        self._listeners: list[Callable[[ModelVersion], None]] = []

    def __iter__(self) -> Iterator[ModelVersion]:
        """Known versions by name."""
        return iter(sorted(self._versions.values(), key=lambda v: v.name))

    def __contains__(self, name: str) -> bool:
        """Whether a version of that name is known."""
        return name in self._versions

    @property
    def default(self) -> ModelVersion:
        """The version that serves requests without a pin, in any state."""
        return self._default

    @property
    def wanted_default(self) -> str:
        """Name of the version that becomes the default once it is ready."""
        return self._wanted

    def add(self, version: ModelVersion) -> ModelVersion:
        """Add a version that has come into the store.

        Returns:
            The version of that name: the one that was known before, if there was one.
        """
        known = self._versions.setdefault(version.name, version)
        if known is version:
            for listener in self._listeners:
                listener(version)
        return known

    def watch(self, listener: Callable[[ModelVersion], None]) -> None:
        """Call ``listener`` with each version that is known now or added later."""
        self._listeners.append(listener)
        for version in self:
            listener(version)

    def ready_names(self) -> frozenset[str]:
        """Names of the versions that are up."""
        return frozenset(v.name for v in self._versions.values() if v.up)

    def get(self, name: str) -> ModelVersion:
        """The version of that name, in any state.

        Raises:
            UnknownVersion: there is none.
        """
        version = self._versions.get(name)
        if version is None:
            raise UnknownVersion(
                f"version {name[:64]!a} is not known here; GET /versions lists those that are"
            )
        return version

    def serving(self, name: str) -> ModelVersion:
        """The version of that name, if it may be routed to.

        The default always may, and so may a version whose engine is being replaced, because their
        cached answers can be served.

        Raises:
            UnknownVersion: there is none.
            VersionNotLoaded: it is not ready.
        """
        version = self.get(name)
        if version.state is State.READY or version.replacing or version is self._default:
            return version
        raise VersionNotLoaded(f"version {version.name} {_WHY_NOT[version.state]}")

    def route(self, pin: str | None) -> ModelVersion:
        """The version that serves a request: the pinned one, else the default.

        Raises:
            UnknownVersion: the pin names no version.
            VersionNotLoaded: the pinned version is not being served.
        """
        return self._default if pin is None else self.serving(pin)

    def set_default(self, name: str) -> None:
        """Make this version the default at once.

        Raises:
            UnknownVersion: there is none of that name.
            VersionNotLoaded: it is not ready, or its engine is dead or suspected.
        """
        version = self.get(name)
        if not version.up:
            ready = version.state is State.READY
            why = "has an engine that died or hangs; wait until it is replaced" if ready else None
            raise VersionNotLoaded(f"version {version.name} {why or _WHY_NOT[version.state]}")
        self._wanted = name
        self._adopt(version)

    def want_default(self, name: str) -> None:
        """Make this version, known or not, the default as soon as it is ready.

        If the present default has no engine, the change is immediate.
        """
        self._wanted = name
        self.settle()

    def settle(self) -> None:
        """Make the wanted default the default if it can be by now."""
        wanted = self._versions.get(self._wanted)
        if wanted is not None and (wanted.state is State.READY or not self._default.holds_memory):
            self._adopt(wanted)

    async def close(self) -> None:
        """Stop all engines, whatever faults some of them have."""
        closing = (version.close() for version in self._versions.values())
        for outcome in await asyncio.gather(*closing, return_exceptions=True):
            if isinstance(outcome, Exception):
                _log.error("engine_not_closed", exc_info=outcome)

    def _adopt(self, version: ModelVersion) -> None:
        if version is not self._default:
            _log.info("default_changed", version=version.name, before=self._default.name)
            self._default = version
