"""Kinds of requests that scenarios are mixed from."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import orjson

from loadtests.arrivals import Phase, poisson
from loadtests.exchange import Request
from loadtests.load import Maker, OpenLoop
from loadtests.queries import Queries
from loadtests.target import Target, TargetFailed

_WARM_DEADLINE_S = 30.0
_WARM_AT_A_TIME = 4
_WARM_TRIES = 10
_WARM_PAUSE_S = 0.5


def rewrite(
    query: str, kind: str, *, deadline_s: float, named: bool = False, **fields: Any
) -> Request:
    """One ``POST /rewrite``.

    Args:
        query: what to rewrite.
        kind: what its figures are grouped by.
        deadline_s: when the answer has to be there.
        named: whether the request says so; else the service's default must be the same.
        fields: more of the body.
    """
    if named:
        fields["deadline_ms"] = round(deadline_s * 1000)
    body = orjson.dumps({"query": query, **fields})
    return Request(kind, "/rewrite", body, deadline_s=deadline_s)


def hits(queries: Queries, *, deadline_s: float) -> Maker:
    """Known queries by popularity; hits, once the cache is warm."""
    return lambda: rewrite(queries.popular(), "hit", deadline_s=deadline_s)


def misses(queries: Queries, *, deadline_s: float, named: bool = False) -> Maker:
    """Queries that nobody has sent before."""
    return lambda: rewrite(queries.unseen(), "miss", deadline_s=deadline_s, named=named)


async def warm(target: Target, queries: Sequence[str]) -> None:
    """Let the cache have an answer to each of ``queries``.

    Raises:
        TargetFailed: one has still no whole answer after a few tries.
    """
    places = asyncio.Semaphore(_WARM_AT_A_TIME)

    async def one(query: str) -> None:
        request = rewrite(query, "warm", deadline_s=_WARM_DEADLINE_S, named=True)
        async with places:
            for _ in range(_WARM_TRIES):
                reply = await target.transport.send(request)
                if reply.code == 200 and reply.status in ("ok", "none"):
                    return
                await asyncio.sleep(_WARM_PAUSE_S)
        raise TargetFailed(f"{query!r} has no whole answer after {_WARM_TRIES} tries")

    async with asyncio.TaskGroup() as group:
        for query in queries:
            group.create_task(one(query))


def load(phases: Sequence[Phase], make: Maker, target: Target, *, seed: int) -> OpenLoop:
    """A run against ``target``, not begun yet."""
    return OpenLoop(poisson(phases, seed=seed), make, target.transport)


Say = Callable[[str], None]
"""Tells whoever waits what is being done."""
