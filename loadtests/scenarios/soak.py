"""Mixed traffic for a long time: growth of memory, and leaks."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from typing import Any

import orjson

from loadtests.arrivals import Phase
from loadtests.exchange import NoReply, Outcome, Request
from loadtests.load import Maker, Mix, OpenLoop
from loadtests.queries import Queries
from loadtests.report import Promise, Report, shown
from loadtests.runner import Context
from loadtests.scenarios.traffic import hits, load, misses, rewrite, warm
from loadtests.summary import summarise
from loadtests.target import Target
from loadtests.trend import Trend, trend
from tests.support.redis_server import RedisServer

_MEMORY_TIER_BYTES = 256 * 1024
"""Small, so that it is full before the measurement begins and Redis has hits too."""
_SETTLE_S = 15.0
"""Time without load until idle connections are closed."""
_TASKS = "requery_asyncio_tasks"
_MOST_GROWTH = 2.0
"""Promised limit of growth, in percent of the resident memory."""
_FEW = 3
"""Tolerated difference of descriptors or tasks between two idle moments."""


@dataclass(frozen=True, slots=True)
class SoakPlan:
    """Sizes and durations.

    Attributes:
        seconds: under load, the warm-up included.
        warm_up_s: after it, memory must not grow.
        sample_s: interval of samples.
        known: repeated queries.
        hit_rate, miss_rate: requests per second; other kinds are added.
    """

    seconds: float = 20 * 60.0
    warm_up_s: float = 5 * 60.0
    sample_s: float = 1.0
    known: int = 300
    hit_rate: float = 20.0
    miss_rate: float = 1.5

    def quick(self) -> SoakPlan:
        """See :class:`loadtests.runner.Plan`."""
        return replace(self, seconds=25.0, warm_up_s=8.0, known=12)


@dataclass(frozen=True, slots=True)
class _Sample:
    """Resources of both processes."""

    at: float
    service_rss: int
    engine_rss: int
    service_descriptors: int
    engine_descriptors: int
    service_threads: int
    engine_threads: int
    tasks: int | None

    @property
    def rss(self) -> int:
        return self.service_rss + self.engine_rss


async def run(plan: SoakPlan, context: Context) -> Report:
    """Load for the planned time, with a sample per second."""
    queries, seed, folder = context.queries, context.seed, context.folder
    server = RedisServer(folder)
    await asyncio.to_thread(server.start)
    known = Queries(queries.known[: plan.known], seed=seed)
    settings = {
        "REQUERY_REDIS_URL": server.url,
        "REQUERY_CACHE_MEMORY_BYTES": str(_MEMORY_TIER_BYTES),
    }
    try:
        async with Target(folder, settings) as target:
            context.say(f"soak: {plan.known} queries into the cache")
            await warm(target, known.known)
            found = await _soak(plan, context, known, target, server)
            found["logged_errors"] = dict(target.events("error"))
            found["logged_warnings"] = dict(target.events("warning"))
    finally:
        await asyncio.to_thread(server.stop)
    return Report("soak", found, _promises(found))


async def _soak(
    plan: SoakPlan, context: Context, known: Queries, target: Target, server: RedisServer
) -> dict[str, Any]:
    seed = context.seed
    _, content = await target.transport.get("/versions")
    version = str(orjson.loads(content)["default"])
    kinds = _Kinds(known, context.queries, target.default_deadline_s, version, seed)
    mix = Mix(kinds.parts(plan), seed=seed)
    begin = plan.warm_up_s + _SETTLE_S
    phases = [
        Phase("warm-up", mix.rate, plan.warm_up_s),
        # Idle, for comparison with the end.
        Phase("pause", 0.0, _SETTLE_S),
        Phase("soak", mix.rate, plan.seconds - plan.warm_up_s),
    ]
    loop = load(phases, mix, target, seed=seed)
    samples: list[_Sample] = []
    async with asyncio.TaskGroup() as group:
        running = group.create_task(loop.run())
        sampling = group.create_task(
            _keep_sampling(target, loop, plan.sample_s, samples, context.say)
        )
        await asyncio.sleep(begin - 1.0)
        idle_before = await _idle(target, server, loop.now())
        outcomes = await running
        await asyncio.sleep(_SETTLE_S)
        idle_after = await _idle(target, server, loop.now())
        sampling.cancel()
    soaked = [o for o in outcomes if o.phase == "soak"]
    seconds = plan.seconds - plan.warm_up_s
    measured = [s for s in samples if begin <= s.at < begin + seconds]
    return {
        "seconds": plan.seconds,
        "warm_up_s": plan.warm_up_s,
        "traffic": summarise(soaked, seconds),
        "by_kind": _by_kind(soaked, seconds),
        "unexpected": _unexpected(outcomes),
        "trends_after_warm_up": {name: _trend(measured, name) for name in _SERIES},
        "idle_before": idle_before,
        "idle_after": idle_after,
        "samples": [asdict(s) for s in samples],
    }


async def _idle(target: Target, server: RedisServer, at: float) -> dict[str, Any] | None:
    """A sample, with the number of Redis connections, which are pooled."""
    sample = await _sample(target, at)
    if sample is None:
        return None
    connections = await asyncio.to_thread(_connections, server)
    others = sample.service_descriptors - connections
    return {**asdict(sample), "redis_connections": connections, "other_descriptors": others}


def _connections(server: RedisServer) -> int:
    with server.client() as client:
        return int(client.info("clients")["connected_clients"]) - 1  # without this one


async def _keep_sampling(
    target: Target,
    loop: OpenLoop,
    every_s: float,
    samples: list[_Sample],
    say: Callable[[str], None],
) -> None:
    shown_at = 0.0
    for number in count(1):
        sample = await _sample(target, loop.now())
        if sample is not None:
            samples.append(sample)
            if sample.at - shown_at >= 60:
                shown_at = sample.at
                say(f"soak: {sample.at:.0f} s, {sample.rss / 2**20:.1f} MiB resident")
        await asyncio.sleep(max(0.0, number * every_s - loop.now()))


async def _sample(target: Target, at: float) -> _Sample | None:
    service, engine = target.usage()
    if service is None or engine is None:
        return None  # the engine is being replaced
    try:
        tasks = (await target.metrics()).get((_TASKS, frozenset()))
    except NoReply:
        tasks = None
    return _Sample(
        at=round(at, 3),
        service_rss=service.rss_bytes,
        engine_rss=engine.rss_bytes,
        service_descriptors=service.descriptors,
        engine_descriptors=engine.descriptors,
        service_threads=service.threads,
        engine_threads=engine.threads,
        tasks=None if tasks is None else int(tasks),
    )


_SERIES = (
    "rss", "service_rss", "engine_rss", "service_descriptors", "engine_descriptors",
    "service_threads", "engine_threads", "tasks",
)  # fmt: skip
"""Attributes of a sample whose trend is reported."""


def _trend(samples: Sequence[_Sample], name: str) -> dict[str, float] | None:
    points = [(s.at, value) for s in samples if (value := getattr(s, name)) is not None]
    found: Trend | None = trend([at for at, _ in points], [value for _, value in points])
    if found is None:
        return None
    return {**asdict(found), "growth_percent": round(found.percent, 3)}


class _Kinds:
    """Makes all kinds of requests."""

    def __init__(
        self, known: Queries, queries: Queries, deadline_s: float, version: str, seed: int
    ) -> None:
        self._known = known
        self._queries = queries
        self._deadline_s = deadline_s
        self._version = version
        self._rng = random.Random(seed)
        self._numbers = count(1)

    def parts(self, plan: SoakPlan) -> list[tuple[float, Maker]]:
        """Rate per second and maker of each kind."""
        return [
            (plan.hit_rate, hits(self._known, deadline_s=self._deadline_s)),
            (plan.hit_rate / 4, self._unit),
            (plan.miss_rate, misses(self._queries, deadline_s=self._deadline_s)),
            (0.2, self._batch),
            (0.3, self._relevance),
            (2.0, self._bad),
            (0.5, self._hang_up),
            (1.0, self._look),
            (0.1, self._route),
            (0.1, self._purge),
        ]

    def _unit(self) -> Request:
        """A unit of an experiment, which leaves an exposure record."""
        unit = f"u-{self._rng.randrange(10_000)}"
        query = self._known.popular()
        return rewrite(query, "unit", deadline_s=self._deadline_s, unit_id=unit)

    def _batch(self) -> Request:
        queries = [*(self._known.popular() for _ in range(6)), self._queries.unseen()]
        body = orjson.dumps({"queries": queries, "deadline_ms": 10_000})
        return Request("batch", "/rewrite/batch", body, deadline_s=10.0)

    def _relevance(self) -> Request:
        pairs = [
            {"query": self._known.popular(), "rewrite": self._known.popular()} for _ in range(4)
        ]
        body = orjson.dumps({"pairs": pairs, "deadline_ms": 5000})
        return Request("relevance", "/relevance", body, deadline_s=5.0)

    def _bad(self) -> Request:
        path, body, headers = self._rng.choice(_BAD)
        return Request("bad", path, body, headers=headers)

    def _hang_up(self) -> Request:
        request = rewrite(self._queries.unseen(), "hang-up", deadline_s=self._deadline_s)
        return replace(request, leave_after_s=self._rng.uniform(0.01, 0.2))

    def _look(self) -> Request:
        return Request("look", self._rng.choice(_LOOKS), method="GET")

    def _route(self) -> Request:
        plan = {
            "default": self._version,
            "weights": {self._version: 1.0},
            "salt": f"soak-{next(self._numbers)}",
        }
        headers = {"if-match": "*", "x-requery-author": "soak"}
        return Request("route", "/routing", orjson.dumps(plan), method="PUT", headers=headers)

    def _purge(self) -> Request:
        body = orjson.dumps({"query": self._known.popular()})
        return Request("purge", "/cache/purge", body)


_LOOKS = ("/versions", "/routing", "/overrides", "/audit", "/metrics", "/readyz", "/livez")
_BAD: tuple[tuple[str, bytes, dict[str, str]], ...] = (
    ("/rewrite", b'{"query": ', {}),
    ("/rewrite", b"[]", {}),
    ("/rewrite", b'{"query": ""}', {}),
    ("/rewrite", b'{"query": 5}', {}),
    ("/rewrite", b'{"query": "\\ud800"}', {}),
    ("/rewrite", orjson.dumps({"query": "x" * 5000}), {}),
    ("/rewrite", b'{"query": "steel stake", "surprise": 1}', {}),
    ("/rewrite", b'{"query": "steel stake", "model_version": "../../etc/passwd"}', {}),
    ("/rewrite", b'{"query": "steel stake"}', {"content-type": "text/plain"}),
    ("/rewrite", b'{"query": "steel stake"}', {"x-request-deadline-ms": "soon"}),
    ("/rewrite", b'"' + b"x" * 300_000 + b'"', {}),
    ("/rewrite/batch", b'{"queries": []}', {}),
    ("/relevance", b'{"pairs": [{"query": "a"}]}', {}),
    ("/nowhere", b"{}", {}),
)

_EXPECTED: dict[str, frozenset[int]] = {
    "bad": frozenset({400, 404, 409, 413, 415, 422}),
    "relevance": frozenset({200, 503, 504}),
    "look": frozenset({200}),
    "route": frozenset({200}),
    "purge": frozenset({200}),
}
_EXPECTED_OTHERWISE = frozenset({200, 503})


def _unexpected(outcomes: Sequence[Outcome]) -> dict[str, int]:
    """Unexpected answers by kind of request, and requests without an answer."""
    found: dict[str, int] = {}
    for outcome in outcomes:
        if outcome.kind == "hang-up":
            continue
        if outcome.code not in _EXPECTED.get(outcome.kind, _EXPECTED_OTHERWISE):
            what = outcome.failure.value if outcome.failure else str(outcome.code)
            found[f"{outcome.kind}: {what}"] = found.get(f"{outcome.kind}: {what}", 0) + 1
    return found


def _by_kind(outcomes: Sequence[Outcome], seconds: float) -> dict[str, Any]:
    kinds = sorted({o.kind for o in outcomes})
    return {kind: summarise([o for o in outcomes if o.kind == kind], seconds) for kind in kinds}


def _promises(found: dict[str, Any]) -> tuple[Promise, ...]:
    trends = found["trends_after_warm_up"]
    memory = trends["rss"]
    # A step shows in the levels earlier than in the trend.
    grown = (
        None
        if memory is None
        else max(memory["growth_percent"], 100.0 * (memory["last"] / memory["first"] - 1.0))
    )
    minutes = f"{found['seconds'] / 60:.0f} minutes"
    leaks = _idle_differences(found["idle_before"], found["idle_after"])
    unexpected = sum(found["unexpected"].values())
    levels = (
        "-"
        if memory is None
        else f"{memory['first'] / 2**20:.1f} to {memory['last'] / 2**20:.1f} MiB"
    )
    return (
        Promise(
            f"soak of {minutes}: resident memory grows at most 2 % after warm-up",
            f"{shown(grown, '%', 2)} ({levels})",
            None if grown is None else grown <= _MOST_GROWTH,
        ),
        Promise(
            f"soak of {minutes}: no descriptors or tasks left when idle again",
            ", ".join(f"{name} {n:+d}" for name, n in leaks.items()) or "-",
            all(n <= _FEW for n in leaks.values()) if leaks else None,
        ),
        Promise(
            f"soak of {minutes}: every answer as expected",
            f"{unexpected} of {found['traffic']['requests']} not",
            unexpected == 0,
        ),
    )


def _idle_differences(
    before: dict[str, Any] | None, after: dict[str, Any] | None
) -> dict[str, int]:
    if before is None or after is None:
        return {}
    names = ("other_descriptors", "engine_descriptors", "service_threads", "tasks")
    return {
        name: after[name] - before[name]
        for name in names
        if before[name] is not None and after[name] is not None
    }
