"""The document store in Redis.

Keys: ``requery:control:<name>`` holds one document as JSON, ``{"schema", "revision", "id",
"body"}`` in that order; ``requery:control:audit`` is the list of audit entries, newest first.
Writers publish the document's name on the channel ``requery:control``.

A message only makes a process read the document, so lost, doubled or late messages do no harm.
Without messages each process polls every half second, and reads only the head of the value. ``id``
is random, so that the heads of two writes differ even if their revisions do not. If you edit a
document by hand, raise its revision.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar, cast

import orjson
import structlog
from redis.asyncio import RedisCluster

from service.control.metrics import ControlMetrics
from service.control.store import AUDIT_ENTRIES, Absent, Listener, Stored, Subscribers, checked
from service.errors import DocumentStoreUnavailable, StaleRevision, UnreadableDocument
from service.redis.bounded import BoundedCommands
from service.redis.client import FAULTS, AnyRedis, disconnect
from service.resilience.outage_log import OutageLogThrottle

_log = structlog.get_logger(component="control")

KEY_PREFIX = "requery:control:"
CHANNEL = "requery:control"
AUDIT_KEY = "requery:control:audit"

_HEAD_BYTES = 128
"""Enough for the schema, the revision and the id."""
_AGAIN_S = 0.2
"""Between two cancellations of a task that has swallowed the first."""
_MESSAGE_WAIT_S = 10.0
"""Length of one wait for messages; older clients cannot wait without a limit."""
_AT_ONCE = 6
"""Most commands under way at a time, abandoned ones included."""
_UNAVAILABLE = "Redis does not answer; the last good documents stay in force, try again shortly"
_UNCERTAIN = (
    "Redis did not answer; the change may have been made all the same, so read the document "
    "before trying again"
)
_UNREADABLE = "what is stored as {} is no document of ours; write it again"

_SWAP = """
local current = redis.call('GET', KEYS[1])
if ARGV[1] == 'none' then
    if current then return 0 end
elseif current ~= ARGV[2] then
    return 0
end
redis.call('SET', KEYS[1], ARGV[3])
return 1
"""
"""Compare-and-set on the bytes that the writer has read, so that the server parses no JSON."""

_NOTE = """
redis.call('LPUSH', KEYS[1], ARGV[1])
redis.call('LTRIM', KEYS[1], 0, ARGV[2])
return 1
"""

_Result = TypeVar("_Result")


class RedisDocumentStore:
    """Documents in Redis, seen by all replicas.

    Works with a client of one server, of Sentinel or of a cluster, because each command uses one
    key. While Redis does not answer, a call ends within one and a half budgets: one for the calls
    before it, and half of one for its own command.

    Args:
        client: of ``redis.asyncio``, without retries of its own; closed with the store. Its own
            time limit bounds how long a command that is no longer waited for may go on.
        metrics: says whether Redis answers.
        budget_s: bound on one command. Generous, because no rewrite waits for the store.
        poll_s: between two polls, when no message comes.
    """

    def __init__(
        self,
        client: AnyRedis,
        metrics: ControlMetrics,
        *,
        budget_s: float = 1.0,
        poll_s: float = 0.5,
    ) -> None:
        # Its stubs cannot tell whether a command is to be awaited.
        self._client: Any = client
        self._metrics = metrics
        self._budget_s = budget_s
        self._poll_s = poll_s
        self._commands = BoundedCommands(_AT_ONCE)
        self._subscribers = Subscribers()
        self._heads: dict[str, bytes] = {}
        """Head of the state that listeners last saw, by document; empty if it has none."""
        self._highest: dict[str, int] = {}
        """Highest revision seen here, by document: after a loss the next write goes on from it."""
        self._readable: dict[str, int] = {}
        """Last revision that was read or written here, by document."""
        self._up = True
        self._ever_up = False
        self._outage = OutageLogThrottle()
        self._stale_connection = False
        self._nudged: set[str] = set()
        self._wake = asyncio.Event()
        # Listeners see reads and writes in the order in which Redis did them.
        self._order = asyncio.Lock()

    @property
    def durable(self) -> bool:
        """True: all replicas see the documents, and Redis keeps them."""
        return True

    async def read(self, name: str) -> Stored | None:
        """The document ``name``; listeners see it too.

        See :meth:`service.control.store.DocumentStore.read`.
        """
        async with self._turn():
            state = await self._look_at(name, nudged=True)
        if state is Absent.UNREADABLE:
            raise UnreadableDocument(_UNREADABLE.format(name))
        return state if isinstance(state, Stored) else None

    async def write(
        self, name: str, body: Mapping[str, Any], *, schema: int, expected: int
    ) -> Stored:
        """Store a new revision; see :meth:`service.control.store.DocumentStore.write`."""
        async with self._turn():
            raw = await self._get(name)
            checked(name, self._replaceable(name, raw), schema=schema, expected=expected)
            revision = max(self._highest.get(name, 0), expected) + 1
            value = _encoded(schema, revision, body)
            if not await self._swap(name, raw, value):
                later = self._replaceable(name, await self._get(name))
                raise StaleRevision(name, later.revision if later else 0)
            stored = self._decoded(name, value)
            self._notify(name, value, stored)
        await self._announce(name)
        return stored

    async def note(self, entry: Mapping[str, Any]) -> None:
        """Append to the audit trail; see :meth:`service.control.store.DocumentStore.note`."""
        raw = orjson.dumps(entry)
        await self._ask(lambda: self._client.eval(_NOTE, 1, AUDIT_KEY, raw, AUDIT_ENTRIES - 1))

    async def notes(self, limit: int) -> list[dict[str, Any]]:
        """The last ``limit`` entries, newest first; those that cannot be read are left out."""
        if limit <= 0:
            return []
        rows = await self._ask(lambda: self._client.lrange(AUDIT_KEY, 0, limit - 1))
        found = []
        for row in rows:
            with suppress(ValueError):
                entry = orjson.loads(row)
                if isinstance(entry, dict):
                    found.append(entry)
        return found

    def subscribe(self, name: str, listener: Listener) -> None:
        """Call ``listener`` with each new state of document ``name``."""
        self._subscribers.add(name, listener)

    async def run(self) -> None:
        """Follow Redis until cancelled: at once by messages, else every ``poll_s`` seconds."""
        listening = asyncio.create_task(self._listen())
        try:
            while not _cancelled():
                nudged, self._nudged = self._nudged, set()
                self._wake.clear()
                await self._look(nudged)
                if self._up and self._stale_connection:
                    # A subscription to a lost server may never notice it.
                    self._stale_connection = False
                    await _stopped(listening)
                    listening = asyncio.create_task(self._listen())
                if _cancelled():
                    break
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._poll_s):
                        await self._wake.wait()
        finally:
            await _stopped(listening)

    async def close(self) -> None:
        """Close all connections."""
        await self._commands.close()
        with suppress(*FAULTS):
            await disconnect(self._client)

    async def _look(self, nudged: set[str]) -> None:
        """Notify listeners of changes; a whole value is read only if its head has changed."""
        for name in self._subscribers.names:
            try:
                # With the full budget: this is how the store finds out that Redis is back.
                async with self._order:
                    await self._look_at(name, nudged=name in nudged, budget_s=self._budget_s)
            except DocumentStoreUnavailable:
                self._nudged |= nudged
                return
            except Exception:  # noqa: BLE001 - following must go on, whatever happens
                _log.exception("control_look_failed", document=name)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Run the block after the calls before it.

        Raises:
            DocumentStoreUnavailable: they take longer than a command may.
        """
        try:
            async with asyncio.timeout(self._command_budget_s):
                await self._order.acquire()
        except TimeoutError as error:
            raise DocumentStoreUnavailable(_UNAVAILABLE) from error
        try:
            yield
        finally:
            self._order.release()

    @property
    def _command_budget_s(self) -> float:
        """Time limit of a command: half while Redis does not answer, to fail fast."""
        return self._budget_s if self._up else self._budget_s / 2

    async def _look_at(
        self, name: str, *, nudged: bool, budget_s: float | None = None
    ) -> Stored | Absent | None:
        """Notify listeners of the stored state; ``None`` if it has not changed."""
        known = self._heads.get(name)
        if not nudged and known is not None and await self._head(name, budget_s) == known:
            return None
        raw = await self._get(name, budget_s)
        state: Stored | Absent = Absent.GONE
        if raw is not None:
            try:
                state = self._decoded(name, raw)
            except UnreadableDocument:
                state = Absent.UNREADABLE
        self._notify(name, raw or b"", state)
        return state

    def _notify(self, name: str, raw: bytes, state: Stored | Absent) -> None:
        self._heads[name] = raw[:_HEAD_BYTES]
        if state is Absent.GONE:
            self._readable[name] = 0
        self._subscribers.notify(name, state)

    async def _get(self, name: str, budget_s: float | None = None) -> bytes | None:
        key = KEY_PREFIX + name
        raw = await self._ask(lambda: self._client.get(key), budget_s=budget_s)
        return cast("bytes | None", raw)

    async def _head(self, name: str, budget_s: float | None) -> bytes:
        key, last = KEY_PREFIX + name, _HEAD_BYTES - 1
        head = await self._ask(lambda: self._client.getrange(key, 0, last), budget_s=budget_s)
        return cast("bytes", head)

    async def _swap(self, name: str, old: bytes | None, new: bytes) -> bool:
        state = "none" if old is None else "some"
        key = KEY_PREFIX + name
        swapped = await self._ask(
            lambda: self._client.eval(_SWAP, 1, key, state, old or b"", new), unless=_UNCERTAIN
        )
        return bool(swapped)

    async def _announce(self, name: str) -> None:
        # Not in the script, which may use one key only; without it the other replicas still poll.
        with suppress(DocumentStoreUnavailable):
            await self._ask(lambda: self._client.publish(CHANNEL, name))

    def _decoded(self, name: str, raw: bytes) -> Stored:
        try:
            found = orjson.loads(raw)
            stored = Stored(found["schema"], found["revision"], found["body"])
        except (ValueError, TypeError, KeyError) as error:
            raise UnreadableDocument(_UNREADABLE.format(name)) from error
        numbers = (stored.schema, stored.revision)
        if not all(type(n) is int and n > 0 for n in numbers) or not isinstance(stored.body, dict):
            raise UnreadableDocument(_UNREADABLE.format(name))
        self._readable[name] = stored.revision
        self._highest[name] = max(self._highest.get(name, 0), stored.revision)
        return stored

    def _replaceable(self, name: str, raw: bytes | None) -> Stored | None:
        """What a write would replace; an unreadable document counts as the last readable one."""
        if raw is None:
            return None
        last = self._readable.get(name, 0)
        try:
            return self._decoded(name, raw)
        except UnreadableDocument:
            return Stored(0, last, {}) if last else None

    async def _listen(self) -> None:
        """Wake :meth:`run` at each message; reconnects when the connection is lost."""
        while not _cancelled():
            try:
                await self._hear_messages()
            except Exception as error:  # noqa: BLE001 - looking goes on without messages
                _log.debug("control_messages_lost", reason=f"{type(error).__name__}: {error}")
            if not _cancelled():
                await asyncio.sleep(self._poll_s)

    async def _hear_messages(self) -> None:
        if isinstance(self._client, RedisCluster):
            # It subscribes at the master of the channel's slot; the slots are known from here on.
            async with asyncio.timeout(self._budget_s):
                await self._client.initialize()
        messages = self._client.pubsub(ignore_subscribe_messages=True)
        try:
            async with asyncio.timeout(self._budget_s):
                await messages.subscribe(CHANNEL)
            # Earlier messages may have been missed.
            self._nudge(*self._subscribers.names)
            while not _cancelled():
                message = await messages.get_message(timeout=_MESSAGE_WAIT_S)
                if message is not None and isinstance(message["data"], bytes):
                    self._nudge(message["data"].decode("utf-8", "replace"))
        finally:
            with suppress(*FAULTS, TimeoutError):
                async with asyncio.timeout(self._budget_s):
                    await messages.aclose()

    def _nudge(self, *names: str) -> None:
        self._nudged.update(names)
        self._wake.set()

    async def _ask(
        self,
        command: Callable[[], Awaitable[_Result]],
        *,
        unless: str = _UNAVAILABLE,
        budget_s: float | None = None,
    ) -> _Result:
        """The answer to ``command``; ``unless`` is the error message if there is none."""
        try:
            answer = await self._commands.run(command, budget_s or self._command_budget_s)
        except TimeoutError as error:
            self._reached(why="no answer in time")
            raise DocumentStoreUnavailable(unless) from error
        except FAULTS as error:
            self._reached(why=f"{type(error).__name__}: {error}")
            if "READONLY" in str(error):
                await self._leave()
            raise DocumentStoreUnavailable(unless) from error
        self._reached()
        return answer

    async def _leave(self) -> None:
        """Drop the connections, because their server is no longer the master."""
        # redis-py does so by itself, but not if a script fails with READONLY.
        pool = getattr(self._client, "connection_pool", None)
        if pool is not None:
            with suppress(*FAULTS):
                await pool.disconnect()

    def _reached(self, *, why: str | None = None) -> None:
        up = why is None
        if not up:
            self._stale_connection = True
        self._ever_up = self._ever_up or up
        if up != self._up:
            self._up = up
            self._metrics.store_up(up)
        if up and self._outage.recovered():
            _log.info("control_board_back", detail="changes are followed again")
        if not up and self._outage.failed():
            # At the start the cache has already warned: it connects to the same Redis first.
            _log.log(
                logging.WARNING if self._ever_up else logging.INFO,
                "control_board_unavailable",
                detail="the last good documents stay in force; check the server",
                reason=why,
                times=self._outage.times,
            )


def _encoded(schema: int, revision: int, body: Mapping[str, Any]) -> bytes:
    # In this order, because polls read only the head of the value.
    return orjson.dumps(
        {"schema": schema, "revision": revision, "id": secrets.token_hex(8), "body": dict(body)}
    )


def _cancelled() -> bool:
    """Whether this task has been cancelled, even if redis-py swallowed the cancellation."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


async def _stopped(task: asyncio.Task[None]) -> None:
    """Cancel ``task`` until it has ended: redis-py may swallow a cancellation."""
    while not task.done():
        task.cancel()
        await asyncio.wait((task,), timeout=_AGAIN_S)
