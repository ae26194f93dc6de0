"""One model version: what it is, where it is in its life, and its engine while it is served."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence
from enum import StrEnum

import structlog

from model_store.errors import ModelStoreError
from model_store.manifest import Manifest
from model_store.text import MAX_QUERY_CHARS, normalise
from service.engine.protocol import Engine
from service.errors import (
    EngineUnavailable,
    InvalidQuery,
    LoadFailed,
    RequeryError,
)
from service.filtering.filters import CandidateFilter
from service.versions.in_flight import InFlightTracker

_log = structlog.get_logger(component="versions")

OnTokens = Callable[[int, int], None]
"""Told of each finished engine request: its prompt tokens and its generated tokens."""
EngineFactory = Callable[[Manifest, OnTokens], Awaitable[Engine]]
"""Makes the engine of a version, weights materialised and all; it is started by the caller."""

FAILURES_IN_A_ROW = 5
"""Generations that fail one after the other before the engine is no longer believed."""

_MAX_REASON_CHARS = 500
_FOLDERS = re.compile(r"(?<![\w.:/])/(?:[^\s/'\",;]+/)+")
"""The folders of an absolute path."""
_CREDENTIALS = re.compile(r"(?<=://)[^\s/@]*@")


class State(StrEnum):
    """Where a version is in its life."""

    AVAILABLE = "available"
    """In the store, not loaded."""
    LOADING = "loading"
    """Waiting for its turn, or being materialised and started."""
    WARMING = "warming"
    """Answering its first queries, which no shopper waits for."""
    READY = "ready"
    DRAINING = "draining"
    """No longer routed to; its engine goes once nothing is under way with it."""
    FAILED = "failed"
    """Could not be loaded; :attr:`Version.reason` says why."""


class ModelVersion:
    """One model version as the pipeline uses it.

    Its life cycle (:meth:`load`, :meth:`unload`) is run by
    :class:`service.versions.loader.Loader`, which sees to it that only one of the two is under way.

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
        self.reason: str | None = None
        """Why it failed, fit to be shown to anybody."""
        self.failure: BaseException | None = None
        """The same in full, for the operator of this process."""
        self.traffic = InFlightTracker()
        self.doubted = False
        """Whether the supervisor has its doubts about the engine, other than :attr:`failing`."""
        self._engine: Engine | None = None
        self._served = False
        self._failures = 0

    @property
    def up(self) -> bool:
        """Whether it is ready and its engine can answer, as far as can be told."""
        return self._engine is not None and self.state is State.READY and not self._down

    @property
    def suspected(self) -> bool:
        """Whether its engine calls itself healthy and is not believed.

        Requests do not wait for such an engine. It clears itself or is replaced; see
        :mod:`service.versions.supervisor`.
        """
        return self.doubted or self.failing

    @property
    def failing(self) -> bool:
        """Whether so many generations have failed in a row that the engine is suspected."""
        return self._failures >= FAILURES_IN_A_ROW

    @property
    def watched(self) -> Engine | None:
        """The engine in whatever condition, for its supervisor; requests take :attr:`engine`."""
        return self._engine

    @property
    def loading(self) -> bool:
        """Whether it is on its way to being ready."""
        return self.state in (State.LOADING, State.WARMING)

    @property
    def replacing(self) -> bool:
        """Whether it was ready and its engine is being replaced.

        Requests may still be routed to it, for its cached answers.
        """
        return self._served and self.loading

    @property
    def occupied(self) -> bool:
        """Whether it has an engine, is getting one, or has not let go of it: it takes memory."""
        return self.state not in (State.AVAILABLE, State.FAILED)

    @property
    def engine(self) -> Engine:
        """The engine; also while the version drains.

        Raises:
            EngineUnavailable: it is loading, was unloaded, has died, or is suspected.
        """
        engine = self._engine
        if engine is None or self._down:
            raise EngineUnavailable(
                f"the engine of version {self.name} is {self._why_down}; try again shortly"
            )
        return engine

    def serving(self) -> InFlightTracker:
        """A context manager that keeps the version from being unloaded under a request.

        Enter it in the same turn of the event loop in which the version was routed to.
        """
        return self.traffic

    async def drained(self) -> None:
        """Return when no request or generation is under way."""
        await self.traffic.drained()

    def observed(self, seconds: float) -> None:
        """A request was answered by this version after ``seconds``."""
        self.traffic.observed(seconds)

    def generated(self, ok: bool) -> None:
        """A generation has ended by itself: well, or since the engine failed it.

        Neither is one that was given up, nor one whose query the engine refused.
        """
        self._failures = 0 if ok else self._failures + 1

    def trust(self) -> None:
        """Believe the engine again."""
        self.doubted, self._failures = False, 0

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

    def begin_load(self) -> None:
        """Say that it is going to be loaded, though its turn may come later."""
        self._served = self.state is State.READY
        self.state, self.reason = State.LOADING, None

    async def load(
        self,
        factory: EngineFactory,
        on_tokens: OnTokens,
        *,
        warm_queries: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> None:
        """Make, start and warm up the engine; one that has died is replaced.

        Cancelling gives it up: the engine is closed and the version available again.

        Args:
            factory: makes the engine.
            on_tokens: told of the engine's work from then on; warming up is not reported.
            warm_queries: answered before the version is ready.
            timeout_s: longest that it may take.

        Raises:
            LoadFailed: it took too long, or none of the queries gave a rewrite.
            Exception: whatever else kept it from starting. The state is then ``failed``.
        """
        if not self.loading:
            self.begin_load()
        engine: Engine | None = None
        bound = asyncio.timeout(timeout_s)
        try:
            async with bound:
                await self.let_go()
                engine = await factory(self.manifest, self._counting(on_tokens))
                await engine.start()
                self.state = State.WARMING
                await self._warm_up(engine, warm_queries)
        except asyncio.CancelledError:
            await self._give_up(engine, None)
            raise
        except Exception as error:
            if not bound.expired():
                await self._give_up(engine, error)
                raise
            late = LoadFailed(
                f"it was not ready within {timeout_s} s (it was {self.state.value}); allow more "
                "with REQUERY_LOAD_TIMEOUT_S"
            )
            await self._give_up(engine, late)
            raise late from error
        self._engine = engine
        self.state = State.READY
        # What may still have come in of the engine before.
        self.trust()
        _log.info("version_ready", version=self.name, digest=self.digest)

    async def unload(self, *, drain_timeout_s: float) -> int:
        """Route nothing here any more, wait for what is under way, close the engine.

        Args:
            drain_timeout_s: longest to wait; what is still under way then is broken off.

        Returns:
            How many requests and generations were broken off.
        """
        self.state = State.DRAINING
        try:
            async with asyncio.timeout(drain_timeout_s):
                await self.drained()
        except TimeoutError:
            _log.warning("drain_cut_off", version=self.name, in_flight=self.traffic.in_flight)
        finally:
            left = self.traffic.in_flight
            await self.close()
        return left

    async def close(self) -> None:
        """Stop the engine, if there is one, at once; whatever the state was, it is available."""
        try:
            await self.let_go()
        finally:
            self.state, self.reason = State.AVAILABLE, None

    async def let_go(self) -> None:
        """Stop the engine, if there is one; what is under way with it fails at once."""
        engine, self._engine = self._engine, None
        self.trust()
        if engine is not None:
            await engine.close()

    def fail(self, error: BaseException) -> None:
        """Say that the version could not be loaded, and why."""
        self.state, self.reason = State.FAILED, public_reason(error)
        self.failure = error

    async def _warm_up(self, engine: Engine, queries: Sequence[str]) -> None:
        """Answer ``queries``, so that the first shopper meets an engine that has seen real work.

        Raises:
            LoadFailed: there are queries, and none gave anything that could be an answer.
        """
        usable = not queries
        for query in queries:
            async for candidate in engine.generate(self.normal_form(query)):
                usable = usable or bool(candidate.relevance is not None and candidate.text.strip())
        if not usable:
            raise LoadFailed(
                f"it gave no finished rewrite for any of {len(queries)} warm-up queries; evaluate "
                "the version, or choose other queries with REQUERY_WARM_QUERIES"
            )

    async def _give_up(self, engine: Engine | None, error: Exception | None) -> None:
        """Free what a load has taken so far; the state tells only once it is free."""
        try:
            if engine is not None:
                await engine.close()
        finally:
            if error is None:
                self.state = State.AVAILABLE
            else:
                self.fail(error)

    @property
    def _down(self) -> bool:
        return self.suspected or self._engine is None or not self._engine.healthy

    @property
    def _why_down(self) -> str:
        if self.replacing:
            return "being replaced"
        if self.loading:
            return "loading"
        if self.suspected and self._engine is not None and self._engine.healthy:
            return "not answering"
        return "down"

    def _counting(self, on_tokens: OnTokens) -> OnTokens:
        def count(prompt: int, generated: int) -> None:
            if not self.loading:
                on_tokens(prompt, generated)

        return count


def public_reason(error: BaseException) -> str:
    """What went wrong, fit to be shown to anybody: no folders of this machine, no credentials."""
    if not isinstance(error, RequeryError | ModelStoreError):
        return f"{type(error).__name__} (the log has the details)"
    text = _CREDENTIALS.sub("", _FOLDERS.sub("", str(error)))
    return text[:_MAX_REASON_CHARS] or type(error).__name__
