"""The model versions that this process knows, and the engines of those that it serves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from enum import StrEnum

import structlog

from model_store.manifest import Manifest
from model_store.text import MAX_QUERY_CHARS, normalise
from service.engine.protocol import Engine
from service.errors import (
    EngineUnavailable,
    InvalidQuery,
    UnknownVersion,
    VersionNotLoaded,
)
from service.filters import CandidateFilter

_log = structlog.get_logger(component="versions")

OnTokens = Callable[[int, int], None]
"""Told of each finished engine request: its prompt tokens and its generated tokens."""
EngineFactory = Callable[[Manifest, OnTokens], Awaitable[Engine]]
"""Makes the engine of a version, weights materialised and all; it is started by the caller."""


class State(StrEnum):
    """Where a version is in its life."""

    AVAILABLE = "available"
    """In the store, not loaded."""
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


class Version:
    """One model version as the pipeline uses it.

    Args:
        manifest: what the version is.
        brands: brands that its rewrites must keep.
    """

    def __init__(self, manifest: Manifest, *, brands: Iterable[str] = ()) -> None:
        self.manifest = manifest
        self.name = manifest.name
        self.digest = manifest.digest
        self._fold_case = manifest.prompt.fold_case
        self.filter = CandidateFilter(manifest.filter, fold_case=self._fold_case, brands=brands)
        self.state = State.AVAILABLE
        self._engine: Engine | None = None

    @property
    def up(self) -> bool:
        """Whether its engine can answer."""
        return self.state is State.READY and self._engine is not None and self._engine.healthy

    @property
    def engine(self) -> Engine:
        """The engine.

        Raises:
            EngineUnavailable: it is loading, or has died.
        """
        if self._engine is None or not self.up:
            raise EngineUnavailable(
                f"the engine of version {self.name} is "
                + ("loading" if self.state is State.LOADING else "down")
                + "; try again shortly"
            )
        return self._engine

    def normal_form(self, text: str, *, field: str = "query") -> str:
        """``text`` in the form that the version was trained on, 1 to 256 characters.

        Raises:
            InvalidQuery: nothing printable is left, or more than 256 characters.
        """
        if text.isascii() and text.isprintable():
            # The same normal form, quickly: this is almost every query.
            normal = " ".join((text.lower() if self._fold_case else text).split())
        else:
            normal = normalise(text, fold_case=self._fold_case)
        if not normal:
            raise InvalidQuery("holds no printable text; send what the shopper typed", field=field)
        if len(normal) > MAX_QUERY_CHARS:
            raise InvalidQuery(
                f"is {len(normal)} characters long, and at most {MAX_QUERY_CHARS} are taken; "
                "cut it or search without rewrites",
                field=field,
            )
        return normal

    async def load(self, factory: EngineFactory, on_tokens: OnTokens) -> None:
        """Make and start the engine.

        Raises:
            Exception: whatever kept it from starting; the state is then ``failed``.
        """
        self.state = State.LOADING
        engine: Engine | None = None
        try:
            engine = await factory(self.manifest, on_tokens)
            await engine.start()
        except BaseException:
            self.state = State.FAILED
            if engine is not None:
                await engine.close()
            raise
        self._engine = engine
        self.state = State.READY
        _log.info("version_ready", version=self.name, digest=self.digest)

    async def close(self) -> None:
        """Stop the engine, if there is one."""
        engine, self._engine = self._engine, None
        if engine is not None:
            self.state = State.AVAILABLE
            await engine.close()


class Versions:
    """All known versions by name, and which one is the default.

    Args:
        versions: every version of the store.
        default: the one that serves requests without a pin.

    Raises:
        UnknownVersion: ``default`` is not among ``versions``.
    """

    def __init__(self, versions: Iterable[Version], *, default: str) -> None:
        self._versions: Mapping[str, Version] = {v.name: v for v in versions}
        if default not in self._versions:
            known = ", ".join(sorted(self._versions)) or "none"
            raise UnknownVersion(
                f"default version {default!a} is not in the store (known: {known})"
            )
        self.default = self._versions[default]

    def __iter__(self) -> Iterator[Version]:
        """Known versions by name."""
        return iter(sorted(self._versions.values(), key=lambda v: v.name))

    def route(self, pin: str | None) -> Version:
        """The version that serves a request: the pinned one, else the default.

        A version that is still loading is routed to: its cached answers can be served.

        Raises:
            UnknownVersion: the pin names no version.
            VersionNotLoaded: the pinned version is not being served.
        """
        if pin is None:
            return self.default
        version = self._versions.get(pin)
        if version is None:
            raise UnknownVersion(
                f"model_version {pin[:64]!a} is not known here; GET /versions lists those that are"
            )
        if version.state in (State.AVAILABLE, State.FAILED) and version is not self.default:
            raise VersionNotLoaded(
                f"version {version.name} is known and not loaded; "
                "leave model_version out to use the default"
            )
        return version

    async def close(self) -> None:
        """Stop all engines."""
        for version in self._versions.values():
            await version.close()
