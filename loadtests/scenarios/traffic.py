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
_WARM_PATIENCE_S = 120.0
_WARM_PAUSE_S = 0.5
_WHOLE = frozenset({(200, "ok"), (200, "none")})


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
    """Let the cache have an answer to each of ``queries``, one after the other.

    Raises:
        TargetFailed: one has no whole answer, however often it is asked.
    """
    now = asyncio.get_running_loop().time
    for query in queries:
        request = rewrite(query, "warm", deadline_s=_WARM_DEADLINE_S, named=True)
        end = now() + _WARM_PATIENCE_S
        reply = await target.transport.send(request)
        while (reply.code, reply.status) not in _WHOLE:
            if now() > end:
                raise TargetFailed(f"{query!r} is answered with {reply.code} {reply.status} only")
            await asyncio.sleep(_WARM_PAUSE_S)
            reply = await target.transport.send(request)


def load(phases: Sequence[Phase], make: Maker, target: Target, *, seed: int) -> OpenLoop:
    """A run against ``target``, not begun yet."""
    return OpenLoop(poisson(phases, seed=seed), make, target.transport)


Say = Callable[[str], None]
"""Tells whoever waits what is being done."""
