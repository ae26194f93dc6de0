"""Redis fails in several ways under load; a proxy in front of it causes the faults."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from loadtests.arrivals import Phase
from loadtests.exchange import NoReply, Outcome
from loadtests.load import Mix
from loadtests.queries import Queries
from loadtests.report import Promise, Report, shown
from loadtests.runner import Context
from loadtests.scenarios.traffic import hits_and_misses, load, warm
from loadtests.summary import milliseconds, percentile, summarise
from loadtests.target import Samples, Target
from tests.chaos.proxy import BlackHole, Delay, Fault, FaultProxy, Pass, Refuse, Reset
from tests.support.redis_server import RedisServer

_POLL_S = 0.1
_DELAY_S = 0.5
_ADDED_S = 0.02
"""Promised limit of what a broken Redis adds to the p99, in seconds."""

Change = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class RedisPlan:
    """Sizes and durations.

    Attributes:
        known: repeated queries, which are in the memory of the service.
        hit_rate, miss_rate: requests per second. Misses are an eighth of an engine's capacity on
            two cores, because at half of it a burst is too much, with or without Redis.
        before_s: without a fault, for comparison.
        fault_s: with a fault.
        after_s: timeout of the recovery.
        faults: names; all if empty.
    """

    known: int = 40
    hit_rate: float = 60.0
    miss_rate: float = 0.5
    before_s: float = 25.0
    fault_s: float = 25.0
    after_s: float = 20.0
    faults: tuple[str, ...] = ()

    def quick(self) -> RedisPlan:
        """See :class:`loadtests.runner.Plan`."""
        return replace(
            self, known=8, hit_rate=10.0, miss_rate=2.0, before_s=4.0, fault_s=5.0, after_s=15.0
        )


@dataclass(frozen=True, slots=True)
class _Case:
    """One fault."""

    name: str
    begin: Change
    end: Change


FAULTS = (
    "refused",
    "reset",
    "reset in the middle of answers",
    "black-holed",
    "slow by 500 ms",
    "killed, then restarted empty",
    "out of memory",
)
"""Names of the faults, in order."""


async def run(plan: RedisPlan, context: Context) -> Report:
    """Each fault in turn, under hits and misses."""
    queries, seed, folder = context.queries, context.seed, context.folder
    server = RedisServer(folder)
    await asyncio.to_thread(server.start)
    known = Queries(queries.known[: plan.known], seed=seed)
    figures: dict[str, Any] = {}
    promises: list[Promise] = []
    try:
        async with (
            FaultProxy(server.port) as proxy,
            Target(folder, {"REQUERY_REDIS_URL": f"redis://127.0.0.1:{proxy.port}/0"}) as target,
        ):
            await warm(target, known.known)
            rates = (plan.hit_rate, plan.miss_rate)
            mix = hits_and_misses(known, queries, target, rates, seed=seed)
            cases = [c for c in _cases(proxy, server) if not plan.faults or c.name in plan.faults]
            for number, case in enumerate(cases):
                context.say(f"Redis: {case.name}")
                found = await _one(plan, case, mix, target, server, seed + number)
                figures[case.name] = found
                promises += _promises(case.name, found)
            figures["logged_errors"] = dict(target.events("error"))
    finally:
        await asyncio.to_thread(server.stop)
    return Report("redis", figures, tuple(promises))


def _cases(proxy: FaultProxy, server: RedisServer) -> list[_Case]:
    def network(fault: Fault) -> Change:
        async def switch() -> None:
            await proxy.switch(fault)

        return switch

    async def restart() -> None:
        await asyncio.to_thread(server.start)

    async def stop() -> None:
        await asyncio.to_thread(server.stop)

    def limit(maxmemory: int) -> Change:
        async def change() -> None:
            await asyncio.to_thread(_set_maxmemory, server, maxmemory)

        return change

    healthy = network(Pass())
    changes: tuple[tuple[Change, Change], ...] = (
        (network(Refuse()), healthy),
        (network(Reset()), healthy),
        (network(Reset(after_bytes=10)), healthy),
        (network(BlackHole()), healthy),
        (network(Delay(_DELAY_S)), healthy),
        (stop, restart),
        (limit(1), limit(0)),
    )
    return [_Case(name, *change) for name, change in zip(FAULTS, changes, strict=True)]


def _set_maxmemory(server: RedisServer, size: int) -> None:
    with server.client() as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", size)


async def _one(
    plan: RedisPlan, case: _Case, mix: Mix, target: Target, server: RedisServer, seed: int
) -> dict[str, Any]:
    phases = [
        Phase("before", mix.rate, plan.before_s),
        Phase("fault", mix.rate, plan.fault_s),
        Phase("after", mix.rate, plan.after_s + plan.before_s),
    ]
    loop = load(phases, mix, target, seed=seed)
    async with asyncio.TaskGroup() as group:
        running = group.create_task(loop.run())
        await asyncio.sleep(plan.before_s)
        await case.begin()
        await asyncio.sleep(plan.before_s + plan.fault_s - loop.now())
        await case.end()
        shared = await _shared_again(target, server, plan.after_s)
        loop.stop()
    outcomes = running.result()
    seconds = {"before": plan.before_s, "fault": plan.fault_s}
    found: dict[str, Any] = {
        name: summarise([o for o in outcomes if o.phase == name], s) for name, s in seconds.items()
    }
    return found | {
        "hits": _compared([o for o in outcomes if o.kind == "hit"], lambda o: o.latency),
        "misses": _compared([o for o in outcomes if o.kind == "miss"], lambda o: o.latency),
        "wait_for_cache_of_misses": _compared(
            [o for o in outcomes if o.kind == "miss" and "cache" in o.stages],
            lambda o: o.stages["cache"],
        ),
        "failed": {
            phase: sum(not o.good() for o in outcomes if o.phase == phase)
            for phase in ("before", "fault", "after")
        },
        "requests_before": sum(o.phase == "before" for o in outcomes),
        "requests_since_the_fault": sum(o.phase != "before" for o in outcomes),
        "not_200": sum(o.code != 200 for o in outcomes),
        "shared_again_s": shared,
    }


def _compared(outcomes: Sequence[Outcome], seconds: Callable[[Outcome], float]) -> dict[str, Any]:
    """Times before and with the fault, and the p99 that the fault adds, in ms."""
    times = {
        phase: [seconds(o) for o in outcomes if o.phase == phase and o.failure is None]
        for phase in ("before", "fault")
    }
    ends = [percentile(times[phase], 99.0) for phase in ("before", "fault")]
    before, fault = ends
    added = None if before is None or fault is None else round((fault - before) * 1000, 3)
    return {phase: milliseconds(values) for phase, values in times.items()} | {"added_p99": added}


async def _shared_again(target: Target, server: RedisServer, patience_s: float) -> float | None:
    """Seconds until Redis answers look-ups, stores answers and holds the control documents."""
    now = asyncio.get_running_loop().time
    begin = now()
    first = await _counters(target)
    keys = await asyncio.to_thread(_keys, server)
    while now() - begin < patience_s:
        await asyncio.sleep(_POLL_S)
        now_counted = await _counters(target)
        if (
            now_counted["read"] > first["read"]
            and now_counted["written"] > first["written"]
            and now_counted["board"]
            and await asyncio.to_thread(_keys, server) > keys
        ):
            return round(now() - begin, 2)
    return None


async def _counters(target: Target) -> dict[str, float]:
    try:
        samples = await target.metrics()
    except NoReply:
        samples = {}
    return {
        "read": sum(_operations(samples, "get", result) for result in ("hit", "stale", "miss")),
        "written": _operations(samples, "put", "ok"),
        "board": samples.get(("requery_control_board_up", frozenset()), 0.0),
    }


def _operations(samples: Samples, operation: str, result: str) -> float:
    labels = frozenset({("tier", "redis"), ("op", operation), ("result", result)})
    return samples.get(("requery_cache_operations_total", labels), 0.0)


def _keys(server: RedisServer) -> int:
    with server.client() as client:
        return int(client.dbsize())


def _promises(name: str, found: dict[str, Any]) -> list[Promise]:
    failed = found["failed"]["fault"] + found["failed"]["after"]
    hit, miss = found["hits"]["added_p99"], found["wait_for_cache_of_misses"]["added_p99"]
    known = [added for added in (hit, miss) if added is not None]
    shared = found["shared_again_s"]
    sent, sent_before = found["requests_since_the_fault"], found["requests_before"]
    without = f"{found['failed']['before']} of {sent_before} before it"
    return [
        Promise(f"Redis {name}: no failed request", f"{failed} of {sent}; {without}", failed == 0),
        Promise(
            f"Redis {name}: added p99 at most 20 ms",
            f"hits {shown(hit, 'ms')}, wait for the cache of misses {shown(miss, 'ms')}",
            max(known) <= _ADDED_S * 1000 if known else None,
        ),
        Promise(
            f"Redis {name}: recovers alone",
            f"shared again after {shown(shared, 's', 2)}",
            shared is not None,
        ),
    ]
