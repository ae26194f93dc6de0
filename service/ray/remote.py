"""An engine somewhere else in the cluster, called by a deployment handle."""

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

LOOK_S = 1.0
"""Between two looks at how many replicas run."""
_TOLD_AFTER = 10
"""Looks that failed in a row before it is told of; what was known before is kept."""


class Stream(Protocol):
    """A call whose answer comes in pieces (Ray Serve's ``DeploymentResponseGenerator``)."""

    def __aiter__(self) -> AsyncIterator[Item | Refusal]: ...

    def cancel(self) -> None:
        """Give the call up, wherever it is."""


class Reply(Protocol):
    """A call with one answer (Ray Serve's ``DeploymentResponse``)."""

    def __await__(self) -> Any: ...

    def cancel(self) -> None:
        """Give the call up, wherever it is."""


class Calls(Protocol):
    """The methods of :class:`service.ray.host.EngineHost`, on any replica of a deployment."""

    def generate(self, query: str) -> Stream:
        """Begin a generation."""

    def tag(self, pairs: Sequence[tuple[str, str]]) -> Reply:
        """Begin to tag."""


class RemoteEngine:
    """All replicas of one version (:class:`service.engine.protocol.Engine`).

    Ray Serve picks the replica, and replaces those that die. An engine that hangs inside its
    replica is found out there; to the supervisor on this side, silence means that no replica has
    sent so much as a sign of life.

    Args:
        calls: makes the calls.
        running: how many replicas run; raises if that cannot be told now.
        name: of the deployment.
        on_tokens: told of the prompt and generated tokens of each finished engine request.
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
        self._looked = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._closed = False
        self._under_way: set[Stream | Reply] = set()
        self._progress = 0

    @property
    def healthy(self) -> bool:
        """Whether a replica runs, as of the last look."""
        return not self._closed and self._replicas > 0

    @property
    def outstanding(self) -> int:
        """Calls that have been neither answered nor given up."""
        return len(self._under_way)

    @property
    def progress(self) -> int:
        """Grows with everything that comes back, signs of life included."""
        return self._progress

    @property
    def effort(self) -> float:
        """Nothing is computed here."""
        return 0.0

    async def start(self) -> None:
        """Return when a replica runs."""
        if self._looking is None:
            self._looking = asyncio.create_task(self._look(), name=f"replicas-{self._name}")
        while not self.healthy:
            self._looked.clear()
            await self._looked.wait()
            if self._closed:
                raise EngineUnavailable("the engine was closed while it waited for a replica")

    async def generate(self, query: str) -> AsyncGenerator[Candidate]:
        """See :meth:`service.engine.protocol.Engine.generate`."""
        self._require_open()
        with self._call(self._calls.generate(query)) as stream:
            async for item in stream:
                if isinstance(item, Refusal):
                    raise item.error()
                self._heard(item.tokens)
                if item.candidate is not None:
                    yield item.candidate

    async def tag(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """See :meth:`service.engine.protocol.Engine.tag`."""
        self._require_open()
        with self._call(self._calls.tag(pairs)) as reply:
            tagged: Tagged | Refusal = await reply
        if isinstance(tagged, Refusal):
            raise tagged.error()
        self._heard(tagged.tokens)
        return tagged.relevance

    async def close(self) -> None:
        """Give up what is under way and look no more; replicas are Ray Serve's business."""
        self._closed = True
        self._looked.set()
        looking, self._looking = self._looking, None
        if looking is not None:
            looking.cancel()
            await asyncio.gather(looking, return_exceptions=True)
        for call in tuple(self._under_way):
            call.cancel()

    @contextmanager
    def _call(self, call: Any) -> Iterator[Any]:
        """One call: given up when the block ends early; what goes wrong is the engine's loss.

        Raises:
            EngineUnavailable: the replica died, or the call did not get to one.
        """
        self._under_way.add(call)
        try:
            yield call
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Not by the caller: by close(), or by Ray.
            raise self._lost() from None
        except RequeryError:
            raise
        except Exception as error:
            _log.info("engine_call_failed", deployment=self._name, reason=repr(error)[:300])
            raise self._lost() from error
        finally:
            self._under_way.discard(call)
            # Without effect on a call that has ended.
            with suppress(Exception):
                call.cancel()

    def _lost(self) -> EngineUnavailable:
        return EngineUnavailable("the replica of the engine was lost; try again shortly")

    def _require_open(self) -> None:
        if self._closed:
            raise EngineUnavailable("the engine has been closed; try again shortly")

    def _heard(self, tokens: Tokens) -> None:
        self._progress += 1
        if self._on_tokens is not None:
            for prompt, generated in tokens:
                self._on_tokens(prompt, generated)

    async def _look(self) -> None:
        while True:
            try:
                self._replicas, self._unknown = await self._running(), 0
            except Exception as error:  # noqa: BLE001 - the controller may be on its way back
                self._unknown += 1
                if self._unknown == _TOLD_AFTER:
                    _log.warning(
                        "replicas_unknown", deployment=self._name, reason=repr(error)[:300]
                    )
            self._looked.set()
            await asyncio.sleep(LOOK_S)
