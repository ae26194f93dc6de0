"""Requests of the scenarios, and the load that they are mixed to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson

from loadtests.arrivals import Phase, poisson
from loadtests.exchange import Request
from loadtests.load import Maker, Mix, OpenLoop
from loadtests.processes import ServerFailed
from loadtests.queries import Queries
from loadtests.target import Target

_WARM_DEADLINE_S = 30.0
_WARM_PATIENCE_S = 120.0
_WARM_PAUSE_S = 0.5
_WHOLE = frozenset({(200, "ok"), (200, "none")})


def rewrite(
    query: str, kind: str, *, deadline_s: float, named: bool = False, **fields: Any
) -> Request:
    """One ``POST /rewrite``.

    Args:
        query: to rewrite.
        kind: group of its figures.
        deadline_s: of the answer.
        named: send the deadline with the request; else it must equal the service's default.
        fields: more of the body.
    """
    if named:
        fields["deadline_ms"] = round(deadline_s * 1000)
    body = orjson.dumps({"query": query, **fields})
    return Request(kind, "/rewrite", body, deadline_s=deadline_s)


def hits(queries: Queries, *, deadline_s: float) -> Maker:
    """Known queries by popularity: hits, if the cache is warm."""
    return lambda: rewrite(queries.popular(), "hit", deadline_s=deadline_s)


def misses(queries: Queries, *, deadline_s: float, named: bool = False) -> Maker:
    """Never-seen queries."""
    return lambda: rewrite(queries.unseen(), "miss", deadline_s=deadline_s, named=named)


async def warm(target: Target, queries: Sequence[str]) -> None:
    """Fill the cache with answers to ``queries``, one after the other.

    Raises:
        ServerFailed: a query gets no complete answer in time.
    """
    now = asyncio.get_running_loop().time
    for query in queries:
        request = rewrite(query, "warm", deadline_s=_WARM_DEADLINE_S, named=True)
        end = now() + _WARM_PATIENCE_S
        reply = await target.transport.send(request)
        while (reply.code, reply.status) not in _WHOLE:
            if now() > end:
                raise ServerFailed(f"{query!r} is only answered with {reply.code} {reply.status}")
            await asyncio.sleep(_WARM_PAUSE_S)
            reply = await target.transport.send(request)


def hits_and_misses(
    known: Queries, unseen: Queries, target: Target, rates: tuple[float, float], *, seed: int
) -> Mix:
    """Known and never-seen queries at two rates, with the service's default deadline."""
    deadline_s = target.default_deadline_s
    makers = (hits(known, deadline_s=deadline_s), misses(unseen, deadline_s=deadline_s))
    return Mix(list(zip(rates, makers, strict=True)), seed=seed)


def load(phases: Sequence[Phase], make: Maker, target: Target, *, seed: int) -> OpenLoop:
    """A run against ``target``, not started."""
    return OpenLoop(poisson(phases, seed=seed), make, target.transport)
