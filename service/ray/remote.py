"""An engine in other replicas of the cluster, called by a deployment handle."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import structlog

from service.engine.protocol import Candidate
from service.errors import EngineUnavailable, RequeryError
from service.ray.wire import Item, Refusal, Tagged, Tokens
from service.versions.version import OnTokens

_log = structlog.get_logger(component="ray")

POLL_S = 1.0
"""Seconds between two counts of the running replicas."""
_LOG_AFTER = 10
"""Counts that fail in a row before a warning; the last count stays in force."""


class Stream(Protocol):
    """A streaming call (Ray Serve's ``DeploymentResponseGenerator``)."""

    def __aiter__(self) -> AsyncIterator[Item | Refusal]: ...

    def cancel(self) -> None:
        """Cancel the call on whichever replica has it."""


class Reply(Protocol):
    """A call with one answer (Ray Serve's ``DeploymentResponse``)."""

    def __await__(self) -> Any: ...

    def cancel(self) -> None:
        """Cancel the call on whichever replica has it."""


class Calls(Protocol):
    """The methods of :class:`service.ray.host.EngineHost`, on any replica of a deployment."""

    def generate(self, query: str) -> Stream:
        """Begin a generation."""

    def tag(self, pairs: Sequence[tuple[str, str]]) -> Reply:
        """Begin to compute relevance."""


class RemoteEngine:
    """All replicas of one version (:class:`service.engine.protocol.Engine`).

    Ray Serve picks the replica, and replaces those that die. A hung engine is detected in its
    replica; for the supervisor on this side, silence means that no replica sends signs of life.

    Args:
        calls: makes the calls.
        running: counts the running replicas; raises if the count is unknown.
        name: of the deployment.
        on_tokens: called with the prompt and generated tokens of each finished engine request.
    """

    def __init__(
        self,
        calls: Calls,
        running: Callable[[], Awaitable[int]],
        *,
        name: str,
        on_tokens: OnTokens | None = None,
    ) -> None:
        self._calls = calls
        self._running = running
        self._name = name
        self._on_tokens = on_tokens
        self._replicas = 0
        self._unknown = 0
        self._polled = asyncio.Event()
        self._polling: asyncio.Task[None] | None = None
        self._closed = False
        self._calls_in_flight: set[Stream | Reply] = set()
        self._progress = 0

    @property
    def healthy(self) -> bool:
        """Whether a replica was running at the last count."""
        return not self._closed and self._replicas > 0

    @property
    def outstanding(self) -> int:
        """Calls in flight."""
        return len(self._calls_in_flight)

    @property
    def progress(self) -> int:
        """Grows with every message from a replica, signs of life included."""
        return self._progress

    @property
    def effort(self) -> float:
        """Zero: the replicas use the CPU time."""
        return 0.0

    @property
    def matrices(self) -> str | None:
        """``None``: the replicas know."""
        return None

    async def start(self) -> None:
        """Wait until a replica runs."""
        if self._polling is None:
            self._polling = asyncio.create_task(self._poll(), name=f"replicas-{self._name}")
        while not self.healthy:
            self._polled.clear()
            await self._polled.wait()
            if self._closed:
                raise EngineUnavailable("the engine was closed while it waited for a replica")

    async def generate(self, query: str) -> AsyncGenerator[Candidate]:
        """See :meth:`service.engine.protocol.Engine.generate`."""
        self._require_open()
        with self._call(self._calls.generate(query)) as stream:
            async for item in stream:
                if isinstance(item, Refusal):
                    raise item.error()
                self._received(item.tokens)
                if item.candidate is not None:
                    yield item.candidate

    async def tag(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """See :meth:`service.engine.protocol.Engine.tag`."""
        self._require_open()
        with self._call(self._calls.tag(pairs)) as reply:
            tagged: Tagged | Refusal = await reply
        if isinstance(tagged, Refusal):
            raise tagged.error()
        self._received(tagged.tokens)
        return tagged.relevance

    async def close(self) -> None:
        """Cancel the calls in flight; Ray Serve manages the replicas."""
        self._closed = True
        self._polled.set()
        polling, self._polling = self._polling, None
        if polling is not None:
            polling.cancel()
            await asyncio.gather(polling, return_exceptions=True)
        for call in tuple(self._calls_in_flight):
            call.cancel()

    @contextmanager
    def _call(self, call: Any) -> Iterator[Any]:
        """One call, cancelled when the block ends early.

        Raises:
            EngineUnavailable: the replica died, or none could take the call.
        """
        self._calls_in_flight.add(call)
        try:
            yield call
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Not this task is cancelled, but the call: by close(), or by Ray.
            raise self._lost() from None
        except RequeryError:
            raise
        except Exception as error:
            _log.info("engine_call_failed", deployment=self._name, reason=repr(error)[:300])
            raise self._lost() from error
        finally:
            self._calls_in_flight.discard(call)
            # It has no effect on a call that has ended.
            with suppress(Exception):
                call.cancel()

    def _lost(self) -> EngineUnavailable:
        return EngineUnavailable("the replica of the engine was lost; try again shortly")

    def _require_open(self) -> None:
        if self._closed:
            raise EngineUnavailable("the engine has been closed; try again shortly")

    def _received(self, tokens: Tokens) -> None:
        self._progress += 1
        if self._on_tokens is not None:
            for prompt, generated in tokens:
                self._on_tokens(prompt, generated)

    async def _poll(self) -> None:
        while True:
            try:
                self._replicas, self._unknown = await self._running(), 0
            except Exception as error:  # noqa: BLE001 - the controller may be restarting
                self._unknown += 1
                if self._unknown == _LOG_AFTER:
                    _log.warning(
                        "replicas_unknown", deployment=self._name, reason=repr(error)[:300]
                    )
            self._polled.set()
            await asyncio.sleep(POLL_S)
