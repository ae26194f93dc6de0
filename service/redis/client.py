"""Clients of Redis: one server, TLS, Sentinel or Cluster, told apart by the URL.

Clients give up soon and never retry, because callers have a budget and can do without Redis.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, Self, TypeAlias

from redis.asyncio import (
    BlockingConnectionPool,
    ConnectionPool,
    Redis,
    RedisCluster,
    Sentinel,
    SentinelConnectionPool,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisClusterException, RedisError

from service.redis.url import parse

AnyRedis: TypeAlias = Redis | RedisCluster

Send = Callable[..., Awaitable[Any]]
"""Sends the command that its arguments make, and awaits the answer."""

FAULTS = (RedisError, RedisClusterException, OSError)
"""Errors of a command (a cluster's are not all a ``RedisError``)."""

_REDRAW_S = 1.0


class _BlockingSentinelPool(SentinelConnectionPool, BlockingConnectionPool):
    """Connections to the current master; waits for a free one."""


class _Cluster(RedisCluster):
    """Refreshes the map of the cluster once a second at most.

    redis-py does so before the next command after a node did not answer. That takes some tens of
    milliseconds, and while a node is away nearly every command would wait for it.
    """

    _drawn_at = -math.inf

    async def initialize(self, *args: Any, **kwargs: Any) -> Self:
        if not self._initialize:
            return self
        known = self.get_default_node() is not None
        if known and time.monotonic() - self._drawn_at < _REDRAW_S:
            self._initialize = False
        else:
            await super().initialize(*args, **kwargs)
            self._drawn_at = time.monotonic()
        return self


def connect(url: str, *, max_connections: int, timeout_s: float) -> AnyRedis:
    """A client for ``url``; connections are opened when they are first needed.

    Args:
        url: ``redis://host:port/db``, ``unix:///path?db=0``,
            ``redis+sentinel://host:port,host:port/service/db`` or
            ``redis+cluster://host:port,host:port``; ``rediss`` instead of ``redis`` for TLS. Each
            may have ``user:password@`` before the hosts, and options: ``client_name``, ``db``,
            ``username``, ``password``, the ``ssl_*`` of redis-py, and for the sentinels' own
            login ``sentinel_username`` and ``sentinel_password``.
        max_connections: bound on open connections, for a cluster on those to each node.
        timeout_s: bound, in seconds, on each of: getting a free connection, connecting, sending,
            reading an answer. It ends as one of :data:`FAULTS`. Do not rely on cancellation
            (``asyncio.timeout``) for a shorter bound: Python 3.11 can swallow it while redis-py
            sends, and the command goes on until ``timeout_s`` is over.

    Raises:
        ValueError: the URL is malformed; the message says how to write it, and repeats nothing
            of it that could be a password.
    """
    target = parse(url)
    common: dict[str, Any] = {
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "protocol": 2,
        "driver_info": None,
        "decode_responses": False,
    }
    if target.kind == "cluster":
        return _Cluster(
            startup_nodes=[ClusterNode(host, port) for host, port in target.hosts],
            max_connections=max_connections,
            require_full_coverage=False,
            # Refreshing the whole map closes connections in use. Each moved slot is noted by
            # itself, and a lost node refreshes the map all the same.
            reinitialize_steps=0,
            retry=_once(),
            ssl=target.tls,
            **common,
            **target.options,
        )
    bounds: dict[str, Any] = {
        "max_connections": max_connections, "timeout": timeout_s, "retry": _once(),
        "db": target.db, **common, **target.options,
    }  # fmt: skip
    if target.kind == "sentinel":
        sentinels = Sentinel(  # type: ignore[no-untyped-call]
            target.hosts,
            sentinel_kwargs={
                "ssl": target.tls, "retry": _once(), **common, **target.sentinel_options,
            },
        )  # fmt: skip
        pool: ConnectionPool = _BlockingSentinelPool(  # type: ignore[no-untyped-call]
            target.service, sentinels, ssl=target.tls, **bounds
        )
    elif target.kind == "unix":
        pool = BlockingConnectionPool(
            connection_class=UnixDomainSocketConnection, path=target.path, **bounds
        )
    else:
        ((host, port),) = target.hosts
        if target.tls:
            bounds["connection_class"] = SSLConnection
        pool = BlockingConnectionPool(host=host, port=port, **bounds)
    return Redis.from_pool(pool)


async def disconnect(client: AnyRedis) -> None:
    """Close every connection of ``client``, those to sentinels too, whatever state it is in."""
    steps: list[Callable[[], Awaitable[None]]] = [client.aclose]
    if isinstance(client, RedisCluster):
        # After a fault aclose() takes the client for closed and leaves its connections open.
        steps += [partial(client.nodes_manager.aclose, n) for n in ("nodes_cache", "startup_nodes")]
    else:
        pool = client.connection_pool
        steps.append(pool.disconnect)
        if isinstance(pool, SentinelConnectionPool):
            steps.append(pool.sentinel_manager.aclose)
    for step in steps:
        with suppress(*FAULTS):
            await step()


async def masters(client: AnyRedis) -> list[Send]:
    """For each node that holds keys, a function that sends it a command.

    Raises:
        FAULTS: the map of the cluster cannot be read.
    """
    if isinstance(client, RedisCluster):
        await client.initialize()
        return [node.execute_command for node in client.get_primaries()]
    return [client.execute_command]


def _once() -> Retry:
    return Retry(NoBackoff(), 0)
