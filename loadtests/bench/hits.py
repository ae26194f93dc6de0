"""Hits: how many a second one process answers, and what they add to a bare route's latency."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loadtests.bench.child import divided
from loadtests.bench.drivers import Driven, Driver
from loadtests.bench.figures import Spread, ratios
from loadtests.bench.hit_servers import BARE, GENERATOR, LITELLM, MEMORY, REDIS, Servers
from loadtests.bench.peer import PeerFailed
from loadtests.bench.plans import HitsPlan
from loadtests.bench.section import Row, Say, Section
from loadtests.queries import Queries

_MOST_MS = 1.0
"""The generator's own p99 from which it is the generator that is measured."""


async def run(
    plan: HitsPlan, queries: Queries, home: Path, folder: Path, say: Say, seed: int
) -> Section:
    """Throughput of each server in turn, then latencies at a part of the bare route's.

    Args:
        plan: how long and how much.
        queries: the first of them are put into the caches.
        home: where LiteLLM's environment is kept.
        folder: for logs.
        say: tells whoever waits.
        seed: of arrivals.
    """
    known = Queries(queries.known[: plan.known], seed=seed)
    cores = divided()
    async with Servers(folder, home, known, plan.draws, say) as servers:
        await servers.start(litellm=plan.litellm)
        driver = Driver(folder, plan.connections, cores and cores[1])
        if cores is not None:
            servers.pin(cores[0], cores[1])
        rounds: list[dict[str, Driven]] = []
        for number in range(plan.rounds):
            say(f"hits, throughput, round {number + 1} of {plan.rounds}")
            rounds.append(await _throughput(plan, servers, driver))
        bare = Spread.of([r[BARE].per_s for r in rounds if BARE in r])
        if bare is None:
            raise PeerFailed("the bare route could not be measured")
        rate = plan.load_share * bare.median
        latencies: list[dict[str, Any]] = []
        for number in range(plan.rounds):
            say(f"hits, latency at {rate:.0f}/s, round {number + 1} of {plan.rounds}")
            latencies.append(await _latencies(plan, servers, driver, rate, seed + number))
        figures = {
            "generator": driver.name,
            "connections": plan.connections,
            "pinned": cores is not None,
            "servers": servers.setup(),
            "not_measured": servers.missing,
            "throughput": [{k: v.content() for k, v in r.items()} for r in rounds],
            "rate_of_latencies_per_s": round(rate, 1),
            "latency": latencies,
        }
    rows, ratio = _rows(rounds, latencies, servers.missing, pinned=cores is not None)
    return Section("hits", {**figures, "ratios": ratio}, tuple(rows))


async def _throughput(plan: HitsPlan, servers: Servers, driver: Driver) -> dict[str, Driven]:
    found = {}
    for server in servers.all:
        with server.awake():
            url = server.url + server.path
            try:
                await driver.drive(server.pid, url, server.bodies, plan.warm_s)
                before = await server.misses()
                driven = await driver.drive(server.pid, url, server.bodies, plan.seconds)
                missed = await server.misses() - before
            except PeerFailed as error:
                servers.missing[server.name] = str(error)
                continue
        if missed:
            # What was generated is neither a hit nor as quick as one.
            failures = driven.failures + missed
            driven = Driven(driven.per_s, failures, driven.latency_ms, driven.cpu_share)
        found[server.name] = driven
    return found


async def _latencies(
    plan: HitsPlan, servers: Servers, driver: Driver, rate: float, seed: int
) -> dict[str, Any]:
    """Percentiles of the generator alone, the bare route, and hits, at the same arrivals."""
    found = {}
    for server in servers.open_loop:
        with server.awake():
            before = await server.misses()
            found[server.name] = await driver.steady(
                server.url + server.path, server.bodies, rate, plan.warm_s, plan.open_s, seed
            )
            # What was generated is neither a hit nor as quick as one.
            found[server.name]["failures"] += await server.misses() - before
    return found


def _rows(
    rounds: Sequence[dict[str, Driven]],
    latencies: Sequence[dict[str, Any]],
    missing: dict[str, str],
    *,
    pinned: bool,
) -> tuple[list[Row], dict[str, Any]]:
    """Lines for people, and the ratios by name."""
    rows: list[Row] = []
    found: dict[str, Any] = {}
    rates = [{name: one.per_s for name, one in r.items()} for r in rounds]
    for name in dict.fromkeys(name for r in rounds for name in r):
        spread = Spread.of([r[name] for r in rates if name in r])
        trouble = next((r[name].trouble for r in rounds if name in r and r[name].trouble), "")
        if not pinned:
            trouble = trouble or "server and generator shared one core"
        against = REDIS if name == LITELLM else BARE
        ratio = None if name == BARE else ratios(rates, name, against)
        text = ""
        if ratio is not None:
            found[f"{name} to {against}"] = ratio.content()
            text = f"{ratio} of {'Requery from ' * (against == REDIS)}{against}"
        note = f"INVALID: {trouble}" if trouble else ""
        rows.append(Row(f"{_whose(name)}, one process", f"{spread} requests/s", text, note))
    rows += [Row(_whose(name), "not measured", note=why[:200]) for name, why in missing.items()]
    added = Spread.of([a for one in latencies if (a := _added(one)) is not None])
    if added is not None:
        found["added_p99_ms"] = added.content()
        alone = Spread.of([one[GENERATOR]["latency_ms"]["p99"] for one in latencies])
        behind = alone is None or alone.median > _MOST_MS
        failed = sum(server["failures"] for one in latencies for server in one.values())
        rows.append(
            Row(
                "p99 that hits from memory add to the bare route",
                f"{added} ms",
                note=f"{'INVALID: ' if behind or failed else ''}"
                f"{f'{failed} requests failed; ' if failed else ''}the generator alone: {alone} ms",
            )
        )
    return rows, found


def _added(latencies: dict[str, Any]) -> float | None:
    """Milliseconds between the 99th percentiles of hits and the bare route."""
    ends = [latencies.get(name, {}).get("latency_ms") for name in (MEMORY, BARE)]
    if ends[0] is None or ends[1] is None:
        return None
    return float(ends[0]["p99"] - ends[1]["p99"])


def _whose(name: str) -> str:
    return f"Requery from {name}" if name in (MEMORY, REDIS) else name


__all__ = ["BARE", "LITELLM", "MEMORY", "REDIS", "run"]
