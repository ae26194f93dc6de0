"""The service as a peer."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from loadtests.bench.child import send
from loadtests.bench.peer import PeerFailed, Work
from loadtests.bench.timing import TimedTransport
from loadtests.exchange import NoReply
from loadtests.scenarios.traffic import rewrite
from loadtests.target import Target, TargetFailed

_PATIENCE_S = 60.0
_UNBOUNDED = {
    # A peer has no deadlines, so nothing may be refused or cut short here either.
    "REQUERY_MAX_DEADLINE_MS": "600000",
    "REQUERY_ADMISSION_TARGET_MS": "600000",
}
_DONE = frozenset({"ok", "none"})


class RequeryPeer:
    """``requery serve`` with a bench version.

    Args:
        version: its name.
        folder: for its log.
        settings: of the service, beside those that keep it from refusing anything.
    """

    name = "Requery"

    def __init__(self, version: str, folder: Path, settings: Mapping[str, str]) -> None:
        self._settings = {**_UNBOUNDED, "REQUERY_DEFAULT_VERSION": version, **settings}
        self._folder = folder
        self._stack = AsyncExitStack()
        self._target: Target | None = None
        self._transport: TimedTransport | None = None

    @property
    def setup(self) -> dict[str, Any]:
        """See :class:`Peer`."""
        return {"settings": {k: v for k, v in self._settings.items() if "_DIR" not in k}}

    @property
    def target(self) -> Target:
        """The running service."""
        if self._target is None:
            raise PeerFailed("the service has not been started")
        return self._target

    @property
    def stages(self) -> list[dict[str, float]]:
        """Seconds by stage of each miss so far."""
        return [] if self._transport is None else self._transport.stages["miss"]

    async def start(self) -> None:
        """See :class:`Peer`."""
        try:
            target = Target(self._folder, self._settings)
            self._target = await self._stack.enter_async_context(target)
        except TargetFailed as error:
            raise PeerFailed(str(error)) from error
        transport = TimedTransport(target.url)
        self._transport = await self._stack.enter_async_context(transport)

    async def ask(self, query: str) -> None:
        """See :class:`Peer`."""
        if self._transport is None:
            raise PeerFailed("the service has not been started")
        try:
            reply = await self._transport.send(
                rewrite(query, "miss", deadline_s=_PATIENCE_S, named=True)
            )
        except NoReply as error:
            raise PeerFailed(f"no answer: {error.failure.value}") from error
        if reply.code != 200 or reply.status not in _DONE or reply.source != "engine":
            raise PeerFailed(f"answered {reply.code} {reply.status}, from {reply.source}")

    async def work(self) -> Work:
        """See :class:`Peer`."""
        tokens: Counter[str] = Counter()
        for (name, labels), value in (await self.target.metrics()).items():
            if name == "requery_tokens_total":
                tokens[dict(labels)["kind"]] += int(value)  # of all versions
        return Work(tokens["prompt"], tokens["generated"])

    def freeze(self) -> None:
        """See :class:`Peer`."""
        send(self.target.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """See :class:`Peer`."""
        send(self.target.process.pid, signal.SIGCONT)

    async def close(self) -> None:
        """See :class:`Peer`."""
        if self._target is not None and self._target.exit_code is None:
            self.thaw()
        await self._stack.aclose()
        self._target = self._transport = None
