"""Two ways to fill the cache: an engine of our own, or a running service."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import httpx
from prometheus_client import CollectorRegistry

from service.cache.keys import cache_key
from service.cache.lifetimes import Entry, Lifetimes
from service.cache.metrics import CacheMetrics
from service.cache.redis_tier import RedisTier
from service.config import calling
from service.config.settings import Settings
from service.engine.protocol import Engine
from service.errors import EngineUnavailable, QueryTooLong
from service.filtering.generation import Generation
from service.precompute.errors import PrecomputeError
from service.precompute.journal import Result
from service.precompute.run import Outcome
from service.redis.client import connect
from service.versions.version import ModelVersion

REDIS_BUDGET_S = 5.0
"""Limit on one command; long, because no request waits for it."""
_RETRY_S = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Waits between tries of one call to a service."""
_MAX_RETRY_AFTER_S = 60.0
_DEADLINE_MS = 600_000
"""Longer than any service allows: each cuts it to its own longest deadline."""

_CACHED = Outcome(Result.CACHED)
_GENERATED = Outcome(Result.GENERATED)


class EngineFiller:
    """Generates with an engine of our own and writes to Redis what the service would write.

    Args:
        version: the version.
        engine: its engine, started.
        redis: the tier that replicas share.
        lifetimes: of cache entries.
        bound_s: limit on one generation, in seconds.
        concurrency: queries in progress at a time.
    """

    size = 1

    def __init__(
        self,
        version: ModelVersion,
        engine: Engine,
        redis: RedisTier,
        *,
        lifetimes: Lifetimes,
        bound_s: float,
        concurrency: int,
    ) -> None:
        self._version = version
        self._engine = engine
        self._redis = redis
        self._lifetimes = lifetimes
        self._bound_s = bound_s
        self.concurrency = concurrency

    async def fill(self, queries: Sequence[str]) -> list[Outcome]:
        """See :class:`service.precompute.run.Filler`; queries are in the version's normal form."""
        return [await self._one(query) for query in queries]

    async def _one(self, query: str) -> Outcome:
        key = cache_key(self._version.digest, query)
        there = await self._cached(key)
        if there is not None and not self._lifetimes.stale(there):
            return _CACHED
        if not self._redis.up:
            return Outcome(Result.FAILED, "Redis does not answer")
        try:
            async with asyncio.timeout(self._bound_s):
                entry = await self._generated(key, query)
        except QueryTooLong:
            return Outcome(Result.REFUSED, "too many tokens")
        except TimeoutError:
            return Outcome(Result.FAILED, f"the generation took more than {self._bound_s:g} s")
        except EngineUnavailable as error:
            raise PrecomputeError(
                f"the engine has stopped ({error}); run this again to go on"
            ) from error
        await self._redis.put(key, entry)
        # A write reports no failure, so read the entry back.
        if await self._cached(key) is None:
            return Outcome(Result.FAILED, "Redis did not keep the entry; is its memory full?")
        return _GENERATED

    async def _cached(self, key: str) -> Entry | None:
        return await self._redis.get(key, budget_s=REDIS_BUDGET_S)

    async def _generated(self, key: str, query: str) -> Entry:
        """The entry that the pipeline would make."""
        stream: Any = self._engine.generate(query)
        async with aclosing(stream):
            generation = Generation.of([candidate async for candidate in stream])
        accepted = generation.default_selection(query, self._version.filter).accepted
        return self._lifetimes.entry(key, generation, empty=not accepted)


class ServiceFiller:
    """Asks a running service, which caches the answers.

    Args:
        client: with the address of the service as its base.
        version: the version to ask for.
        size: queries of one call, at most 256.
        sleep: waits between tries.
    """

    concurrency = 1

    def __init__(
        self,
        client: httpx.AsyncClient,
        version: str,
        *,
        size: int,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._client = client
        self._version = version
        self.size = size
        self._sleep = sleep

    async def fill(self, queries: Sequence[str]) -> list[Outcome]:
        """See :class:`service.precompute.run.Filler`."""
        content = await self._asked(
            {
                "queries": list(queries),
                "model_version": self._version,
                "deadline_ms": _DEADLINE_MS,
            }
        )
        answers = content.get("answers") if isinstance(content, dict) else None
        if not isinstance(answers, list) or len(answers) != len(queries):
            raise PrecomputeError(f"{self._client.base_url} does not answer as Requery does")
        return [_outcome(answer) for answer in answers]

    async def _asked(self, body: Mapping[str, Any]) -> Any:
        """The answer to one batch, with retries while the service is busy or down."""
        why = ""
        for wait in (*_RETRY_S, None):
            try:
                response = await self._client.post("/rewrite/batch", json=body)
            except httpx.TransportError as error:
                why, after = f"{type(error).__name__}: {error}", 0.0
            else:
                if response.status_code == httpx.codes.OK:
                    return _json(response)
                _require_allowed(response)
                why, after = _refusal(response), _retry_after(response)
                if response.status_code not in (429, 500, 502, 503, 504):
                    raise PrecomputeError(f"{self._client.base_url} refused the queries: {why}")
            if wait is not None:
                await self._sleep(max(wait, after))
        raise PrecomputeError(
            f"{self._client.base_url} does not answer ({why}); run this again once it does"
        )


async def served_version(client: httpx.AsyncClient, name: str | None) -> tuple[str, str]:
    """Name and digest of the version to ask a service for.

    Args:
        client: with the address of the service as its base.
        name: of the version; ``None`` is the service's default.

    Raises:
        PrecomputeError: the service does not answer, or does not serve the version.
    """
    try:
        response = await client.get("/versions")
        _require_allowed(response)
        content: Any = _json(response) if response.status_code == httpx.codes.OK else None
        known = {one["name"]: one for one in content["versions"]}
        name = name or str(content["default"])
    except httpx.TransportError as error:
        why = str(error) or type(error).__name__
        raise PrecomputeError(f"{client.base_url} does not answer ({why}); check --url") from error
    except (TypeError, KeyError, ValueError) as error:
        raise PrecomputeError(
            f"{client.base_url} does not answer as Requery does; check --url"
        ) from error
    version = known.get(name)
    if version is None or version.get("state") != "ready":
        ready = ", ".join(sorted(n for n, one in known.items() if one.get("state") == "ready"))
        raise PrecomputeError(
            f"{client.base_url} does not serve version {name} (ready: {ready or 'none'}); choose "
            "another with --version-name, or load it first"
        )
    return name, str(version["digest"])


def _require_allowed(response: httpx.Response) -> None:
    told = calling.refused(response, key="authorization" in response.request.headers)
    if told is not None:
        raise PrecomputeError(told)


def _outcome(answer: Mapping[str, Any]) -> Outcome:
    """The outcome that the service's answer to one query implies."""
    if "index" in answer:
        why = str(answer.get("detail", answer.get("title", "a problem")))
        refused = answer.get("status") == httpx.codes.UNPROCESSABLE_ENTITY
        return Outcome(Result.REFUSED if refused else Result.FAILED, why)
    status, source = answer.get("status"), answer.get("source")
    if status not in ("ok", "none") or source == "none":
        return Outcome(Result.FAILED, f"the service answered '{status}'")
    return _GENERATED if source in ("engine", "coalesced") else _CACHED


def _refusal(response: httpx.Response) -> str:
    content = _json(response)
    detail = content.get("detail") if isinstance(content, dict) else None
    return f"{response.status_code} {detail or response.reason_phrase}"


def _retry_after(response: httpx.Response) -> float:
    given = response.headers.get("retry-after", "")
    return min(float(given), _MAX_RETRY_AFTER_S) if given.isascii() and given.isdigit() else 0.0


def _json(response: httpx.Response) -> Any:
    try:
        return response.json()
    except ValueError:
        return None


def redis_tier(settings: Settings, lifetimes: Lifetimes, connections: int) -> RedisTier:
    """The Redis tier of the service's cache, with time limits for background work.

    Raises:
        PrecomputeError: the URL is malformed.
    """
    assert settings.redis_url is not None  # noqa: S101 - for the type checker
    try:
        client = connect(
            settings.redis_url.get_secret_value(),
            max_connections=connections + 1,
            timeout_s=REDIS_BUDGET_S,
        )
    except ValueError as error:
        raise PrecomputeError(f"REQUERY_REDIS_URL: {error}") from None
    return RedisTier(
        client,
        lifetimes=lifetimes,
        read_budget_s=REDIS_BUDGET_S,
        write_budget_s=REDIS_BUDGET_S,
        concurrency=connections,
        max_bytes=settings.cache_redis_bytes,
        metrics=CacheMetrics(CollectorRegistry()),
    )
