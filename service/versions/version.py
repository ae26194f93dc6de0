"""One model version: its manifest, its state, and its engine while it is loaded."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence

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
from service.filtering.catalogue import TermIndex
from service.filtering.filters import CandidateFilter
from service.versions.in_flight import InFlightTracker
from service.versions.state import State

_log = structlog.get_logger(component="versions")

OnTokens = Callable[[int, int], None]
"""Called for each finished engine request with its prompt tokens and its generated tokens."""
EngineFactory = Callable[[Manifest, OnTokens], Awaitable[Engine]]
"""Materialises the weights of a version and makes its engine; the caller starts it."""

FAILURES_IN_A_ROW = 5
"""Generations that must fail one after the other before the engine is suspected."""

_MAX_REASON_CHARS = 500
_FOLDERS = re.compile(r"(?<![\w.:/])/(?:[^\s/'\",;]+/)+")
"""The folders of an absolute path."""
_CREDENTIALS = re.compile(r"(?<=://)[^\s/@]*@")


class ModelVersion:
    """One model version as the pipeline uses it.

    :class:`service.versions.loader.Loader` loads and unloads it, one at a time. The state changes
    in :meth:`_enter` only, along the transitions that :mod:`service.versions.state` allows.

    Args:
        manifest: describes the version.
        brands: brands that its rewrites must keep.
        catalogue: the shop's, in which rewrites are looked up.
    """

    def __init__(
        self,
        manifest: Manifest,
        *,
        brands: Iterable[str] = (),
        catalogue: TermIndex | None = None,
    ) -> None:
        self.manifest = manifest
        self.name = manifest.name
        self.digest = manifest.digest
        self._fold_case = manifest.prompt.fold_case
        self.filter = CandidateFilter(
            manifest.filter, fold_case=self._fold_case, brands=brands, catalogue=catalogue
        )
        self.in_flight = InFlightTracker()
        self._state = State.AVAILABLE
        self._failure: BaseException | None = None
        self._silent = False
        self._engine: Engine | None = None
        self._served = False
        self._failures = 0

    @property
    def state(self) -> State:
        """Where it is in its life cycle."""
        return self._state

    @property
    def failure(self) -> BaseException | None:
        """Why it is ``failed``, in full: for logs only."""
        return self._failure

    @property
    def reason(self) -> str | None:
        """Why it is ``failed``, without paths or credentials."""
        return None if self._failure is None else public_reason(self._failure)

    @property
    def up(self) -> bool:
        """Whether it is ready, and its engine is alive and not suspected."""
        return self._engine is not None and self._state is State.READY and not self._down

    @property
    def suspected(self) -> bool:
        """Whether its engine is silent or failing; it gets no requests then.

        Such an engine recovers or is replaced; see :mod:`service.versions.supervisor`.
        """
        return self._silent or self.failing

    @property
    def failing(self) -> bool:
        """Whether the last :data:`FAILURES_IN_A_ROW` generations have failed."""
        return self._failures >= FAILURES_IN_A_ROW

    @property
    def unchecked_engine(self) -> Engine | None:
        """The engine, suspected or dead too: for its supervisor; requests take :attr:`engine`."""
        return self._engine

    @property
    def matrices(self) -> str | None:
        """See :attr:`service.engine.protocol.Engine.matrices`; ``None`` without an engine."""
        return None if self._engine is None else self._engine.matrices

    @property
    def loading(self) -> bool:
        """Whether it is being loaded or warmed up."""
        return self._state in (State.LOADING, State.WARMING)

    @property
    def replacing(self) -> bool:
        """Whether it was ready and its engine is being replaced.

        Requests are still routed to it because its cached answers can be served.
        """
        return self._served and self.loading

    @property
    def holds_memory(self) -> bool:
        """Whether it has an engine, is getting one, or is stopping one."""
        return self._state not in (State.AVAILABLE, State.FAILED)

    @property
    def engine(self) -> Engine:
        """The engine, also while the version drains.

        Raises:
            EngineUnavailable: the engine is loading, unloaded, dead, or suspected.
        """
        engine = self._engine
        if engine is None or self._down:
            raise EngineUnavailable(
                f"the engine of version {self.name} is {self._why_down}; try again shortly"
            )
        return engine

    def serving(self) -> InFlightTracker:
        """A context manager that keeps the version loaded while a request uses it.

        Enter it without an ``await`` after routing to the version.
        """
        return self.in_flight

    def observed(self, seconds: float) -> None:
        """Record that a request was answered after ``seconds``."""
        self.in_flight.observed(seconds)

    def generated(self, ok: bool) -> None:
        """Record that a generation succeeded, or that the engine failed it.

        Cancelled generations and queries that the engine refused count as neither.
        """
        self._failures = 0 if ok else self._failures + 1

    def suspect(self, *, silent: bool = True) -> None:
        """Suspect the engine because it is silent, or no longer for that reason."""
        self._silent = silent

    def clear(self) -> None:
        """Stop suspecting the engine."""
        self._silent, self._failures = False, 0

    def normal_form(self, text: str, *, field: str = "query") -> str:
        """``text`` in the form that the version was trained on, 1 to 256 characters.

        Raises:
            InvalidQuery: no printable character is left, or more than 256 characters are.
        """
        if text.isascii() and text.isprintable():
            # A fast path to the same normal form: almost every query takes it.
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
        """Mark it as loading; the load itself may be queued."""
        served = self._state is State.READY
        self._enter(State.LOADING)
        self._served = served

    def begin_unload(self) -> None:
        """Mark it as draining: it is no longer routed to."""
        self._enter(State.DRAINING)

    async def load(
        self,
        factory: EngineFactory,
        on_tokens: OnTokens,
        *,
        warm_queries: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> None:
        """Make, start and warm up an engine, after stopping the present one.

        Cancelling closes the new engine; the version is then available, or goes on draining.

        Args:
            factory: makes the engine.
            on_tokens: called for the engine's requests, except for warm-up queries.
            warm_queries: queries to answer before the version is ready.
            timeout_s: limit on the whole load.

        Raises:
            LoadFailed: it took too long, or no warm-up query gave a rewrite.
            Exception: any other fault of the start. The state is then ``failed``.
        """
        if not self.loading:
            self.begin_load()
        engine: Engine | None = None
        bound = asyncio.timeout(timeout_s)
        try:
            async with bound:
                await self.stop_engine()
                engine = await factory(self.manifest, self._counting(on_tokens))
                await engine.start()
                self._enter(State.WARMING)
                await self._warm_up(engine, warm_queries)
        except asyncio.CancelledError:
            await self._give_up(engine, None)
            raise
        except Exception as error:
            if not bound.expired():
                await self._give_up(engine, error)
                raise
            late = LoadFailed(
                f"it was not ready within {timeout_s} s (it was {self._state.value}); allow more "
                "with REQUERY_LOAD_TIMEOUT_S"
            )
            await self._give_up(engine, late)
            raise late from error
        self._engine = engine
        self._enter(State.READY)
        # Generations of the engine before may have failed meanwhile.
        self.clear()
        _log.info("version_ready", version=self.name, digest=self.digest)

    async def unload(self, *, drain_timeout_s: float) -> int:
        """Stop routing to it, wait for what is in flight, close the engine.

        Args:
            drain_timeout_s: limit on the wait; what is still in flight then fails.

        Returns:
            How many requests and generations failed that way.
        """
        if self._state is not State.DRAINING:
            self.begin_unload()
        try:
            async with asyncio.timeout(drain_timeout_s):
                await self.in_flight.drained()
        except TimeoutError:
            _log.warning("drain_cut_off", version=self.name, in_flight=self.in_flight.count)
        finally:
            left = self.in_flight.count
            await self.close()
        return left

    async def close(self) -> None:
        """Stop the engine, if there is one, without draining; the version is then available."""
        try:
            await self.stop_engine()
        finally:
            self.reset()

    def reset(self) -> None:
        """Make it available again, whatever it was; it has no engine."""
        if self._state is not State.AVAILABLE:
            self._enter(State.AVAILABLE)

    async def stop_engine(self) -> None:
        """Stop the engine, if there is one; what is in flight on it fails."""
        engine, self._engine = self._engine, None
        self.clear()
        if engine is not None:
            await engine.close()

    def fail(self, error: BaseException) -> None:
        """Record that the version could not be loaded, and why."""
        self._enter(State.FAILED, error)

    def _enter(self, state: State, failure: BaseException | None = None) -> None:
        """Change the state: nothing else does.

        Raises:
            ForbiddenTransition: ``state`` cannot follow the present one.
        """
        self._state.require_next(state)
        self._state, self._failure = state, failure

    async def _warm_up(self, engine: Engine, queries: Sequence[str]) -> None:
        """Answer ``queries`` so that the first request meets an engine that has done real work.

        Raises:
            LoadFailed: there are queries, and none gave a finished rewrite.
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
        """End a load; the state changes only once its memory is free."""
        try:
            if engine is not None:
                await engine.close()
        finally:
            if self._state is not State.DRAINING:  # else unload() goes on
                if error is None:
                    self.reset()
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
    """The message of ``error`` without folders of this machine and without credentials."""
    if not isinstance(error, RequeryError | ModelStoreError):
        return f"{type(error).__name__} (the log has the details)"
    text = _CREDENTIALS.sub("", _FOLDERS.sub("", str(error)))
    return text[:_MAX_REASON_CHARS] or type(error).__name__
