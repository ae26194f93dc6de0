"""Hits: throughput of one process, and the latency that it adds to a bare route."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from loadtests.bench.figures import Spread, ratios
from loadtests.bench.hit_servers import BARE, GENERATOR, LITELLM, MEMORY, REDIS, Servers
from loadtests.processes import ServerFailed, cpu_seconds, divided, output
from loadtests.queries import Queries
from loadtests.report import Report, Row
from loadtests.runner import Context

ENOUGH_CPU = 0.9
"""Cores that a server of one process must use for its throughput to be its limit."""
_MAX_LAG_MS = 1.0
"""Limit of the generator's own p99; above it, the generator is what is measured."""
_OPEN_CONNECTIONS = 64
_SLACK_S = 60.0


@dataclass(frozen=True, slots=True)
class HitsPlan:
    """Sizes and durations.

    Attributes:
        known: queries in the cache.
        draws: requests prepared for the generator, drawn from them by Zipf's law.
        connections: kept busy by the generator.
        seconds: of each measurement of throughput.
        warm_s: before it, not measured.
        open_s: of each measurement of latency, at a fixed rate.
        rounds: of all servers in turn.
        load_share: rate of the latency measurements as a share of the bare route's throughput.
        litellm: whether LiteLLM's proxy is installed and measured.
    """

    known: int = 200
    draws: int = 10_000
    connections: int = 16
    seconds: float = 10.0
    warm_s: float = 2.0
    open_s: float = 20.0
    rounds: int = 5
    load_share: float = 0.5
    litellm: bool = True

    def quick(self) -> HitsPlan:
        """See :class:`loadtests.runner.Plan`."""
        return replace(self, known=6, draws=200, seconds=1.5, warm_s=0.5, open_s=2.0, rounds=1)


@dataclass(frozen=True, slots=True)
class Driven:
    """Throughput of one server.

    Attributes:
        per_s: answers with a 200 per second.
        failures: other answers, and requests without one.
        latency_ms: percentiles under this load.
        cpu_share: cores that the server's process used.
    """

    per_s: float
    failures: int
    latency_ms: dict[str, float]
    cpu_share: float

    @property
    def trouble(self) -> str:
        """The reason why this is not the server's limit, or an empty string."""
        if self.failures:
            return f"{self.failures} requests failed"
        if self.cpu_share < ENOUGH_CPU:
            return f"the server used only {self.cpu_share:.2f} of a core"
        return ""

    def content(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "per_s": round(self.per_s, 1),
            "failures": self.failures,
            "latency_ms": self.latency_ms,
            "server_cpu_share": round(self.cpu_share, 3),
            "invalid": self.trouble or None,
        }


@dataclass(frozen=True, slots=True)
class Generator:
    """Drives one server with :mod:`loadtests.bench.pump`.

    Attributes:
        cores: of the generator; ``None``: chosen by the system.
    """

    cores: Sequence[int] | None

    async def drive(
        self, pid: int, url: str, bodies: Path, connections: int, seconds: float
    ) -> Driven:
        """Keep connections busy, from two processes per core because each one waits a lot.

        Args:
            pid: the server's process, whose CPU time counts.
            url: with its path.
            bodies: a file with one JSON body per line.
            connections: in all.
            seconds: duration.

        Raises:
            ServerFailed: the generator failed, or nothing was answered.
        """
        count = min(connections, 2 * len(self.cores or [0]))
        shares = [len(range(i, connections, count)) for i in range(count)]
        before = cpu_seconds(pid)
        done = await asyncio.gather(*(self.pump(url, bodies, seconds, n) for n in shares))
        # Without the time in which the generator itself was started.
        cpu = (cpu_seconds(pid) - before) / max(one["seconds"] for one in done)
        worst = max(done, key=lambda one: one["latency_ms"]["p99"])
        return Driven(
            per_s=sum(one["requests"] / one["seconds"] for one in done),
            failures=sum(one["failures"] for one in done),
            latency_ms=worst["latency_ms"],
            cpu_share=cpu,
        )

    async def pump(
        self,
        url: str,
        bodies: Path,
        seconds: float,
        connections: int = _OPEN_CONNECTIONS,
        rate: float = 0.0,
        warm_s: float = 0.0,
        seed: int = 0,
    ) -> dict[str, Any]:
        """The figures of one pump: at a rate (open loop), or with all connections busy (rate 0).

        Raises:
            ServerFailed: the generator failed, or nothing was answered.
        """
        numbers = map(str, (connections, rate, warm_s, seconds, seed))
        command = (sys.executable, "-m", "loadtests.bench.pump", url, str(bodies), *numbers)
        timeout_s = warm_s + seconds + _SLACK_S
        return read(await output(*command, timeout_s=timeout_s, cores=self.cores))


def read(printed: bytes) -> dict[str, Any]:
    """Figures of a generator: the last line that it prints.

    Raises:
        ServerFailed: there are none, or nothing was answered.
    """
    try:
        figures: dict[str, Any] = orjson.loads(printed.splitlines()[-1])
    except (IndexError, ValueError):
        end = printed[-300:].decode(errors="replace")
        raise ServerFailed(f"the generator says: {end}") from None
    if not figures["requests"] or figures["latency_ms"] is None:
        raise ServerFailed(f"nothing was answered, {figures['failures']} failed")
    return figures


async def run(plan: HitsPlan, context: Context) -> Report:
    """Throughput of each server in turn, then latencies at a share of the bare route's."""
    known = Queries(context.queries.known[: plan.known], seed=context.seed)
    cores = divided()
    say = context.say
    async with Servers(context.folder, known, plan.draws, say) as servers:
        await servers.start(litellm=plan.litellm)
        generator = Generator(cores and cores[1])
        if cores is not None:
            servers.pin(*cores)
        rounds: list[dict[str, Driven]] = []
        for number in range(plan.rounds):
            say(f"hits, throughput, round {number + 1} of {plan.rounds}")
            rounds.append(await _throughput(plan, servers, generator))
        bare = Spread.of([r[BARE].per_s for r in rounds if BARE in r])
        if bare is None:
            raise ServerFailed("the bare route could not be measured")
        rate = plan.load_share * bare.median
        latencies: list[dict[str, Any]] = []
        for number in range(plan.rounds):
            say(f"hits, latency at {rate:.0f}/s, round {number + 1} of {plan.rounds}")
            seed = context.seed + number
            latencies.append(await _latencies(plan, servers, generator, rate, seed))
        figures = {
            "connections": plan.connections,
            "pinned": cores is not None,
            "servers": {server.name: server.setup for server in servers.all},
            "not_measured": servers.missing,
            "throughput": [{k: v.content() for k, v in r.items()} for r in rounds],
            "rate_of_latencies_per_s": round(rate, 1),
            "latency": latencies,
        }
    rows, ratio = _rows(rounds, latencies, servers.missing, pinned=cores is not None)
    return Report("hits", {**figures, "ratios": ratio}, tuple(rows))


async def _throughput(plan: HitsPlan, servers: Servers, generator: Generator) -> dict[str, Driven]:
    found = {}
    for server in servers.all:
        load = (server.child.pid, server.url, server.bodies, plan.connections)
        with server.awake():
            try:
                await generator.drive(*load, plan.warm_s)
                before = await server.missed()
                driven = await generator.drive(*load, plan.seconds)
                # A generated answer is neither a hit nor as fast as one.
                missed = await server.missed() - before
            except ServerFailed as error:
                servers.missing[server.name] = str(error)
                continue
        found[server.name] = replace(driven, failures=driven.failures + missed)
    return found


async def _latencies(
    plan: HitsPlan, servers: Servers, generator: Generator, rate: float, seed: int
) -> dict[str, Any]:
    """Percentiles of the generator alone, the bare route, and hits, at the same arrivals."""
    found = {}
    for server in servers.open_loop:
        with server.awake():
            before = await server.missed()
            found[server.name] = await generator.pump(
                server.url, server.bodies, plan.open_s, rate=rate, warm_s=plan.warm_s, seed=seed
            )
            found[server.name]["failures"] += await server.missed() - before
    return found


def _rows(
    rounds: Sequence[dict[str, Driven]],
    latencies: Sequence[dict[str, Any]],
    missing: dict[str, str],
    *,
    pinned: bool,
) -> tuple[list[Row], dict[str, Any]]:
    """Rows of the table, and the ratios by name."""
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
            text = f"{ratio} of {_title(against)}"
        note = f"INVALID: {trouble}" if trouble else ""
        rows.append(Row(f"{_title(name)}, one process", f"{spread} requests/s", text, note))
    rows += [Row(_title(name), "not measured", note=why[:200]) for name, why in missing.items()]
    added = Spread.of([a for one in latencies if (a := _added(one)) is not None])
    if added is not None:
        found["added_p99_ms"] = added.content()
        alone = Spread.of([one[GENERATOR]["latency_ms"]["p99"] for one in latencies])
        behind = alone is None or alone.median > _MAX_LAG_MS
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
    """Difference between the 99th percentiles of hits and the bare route, in ms."""
    ends = [latencies.get(name, {}).get("latency_ms") for name in (MEMORY, BARE)]
    return None if None in ends else float(ends[0]["p99"] - ends[1]["p99"])


def _title(name: str) -> str:
    return f"Requery from {name}" if name in (MEMORY, REDIS) else name
