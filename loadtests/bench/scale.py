"""The cost of more candidates, more loaded versions and a larger cache."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

import orjson
import psutil

from loadtests.bench.cache_fill import NEEDED_BYTES
from loadtests.bench.peers import RequeryPeer, closed_loop, post
from loadtests.bench.versions import BenchVersions, bench_name
from loadtests.processes import ServerFailed, output, tree, usage
from loadtests.report import Report, Row
from loadtests.runner import Context
from loadtests.scenarios.traffic import rewrite
from loadtests.summary import milliseconds

_FILL_S = 1200.0


@dataclass(frozen=True, slots=True)
class ScalePlan:
    """Sizes.

    Attributes:
        candidates: of a miss.
        misses: for each number of candidates and of loaded versions.
        entries: of the cache in memory.
        hits: timed look-ups for each number of loaded versions and of entries.
    """

    candidates: tuple[int, ...] = (1, 2, 4, 8)
    misses: int = 40
    entries: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    hits: int = 5_000

    def quick(self) -> ScalePlan:
        """See :class:`loadtests.runner.Plan`."""
        return replace(self, candidates=(1, 4), misses=2, entries=(1_000, 10_000), hits=100)


async def run(plan: ScalePlan, context: Context, *, versions: BenchVersions, of: str) -> Report:
    """Measure candidates, loaded versions and entries in turn."""
    versions.make(of, plan.candidates)
    figures: dict[str, Any] = {"candidates": {}, "cache_entries": []}
    for count in plan.candidates:
        context.say(f"scale: {count} candidates")
        peer = RequeryPeer(bench_name(count), context.folder / f"n{count}", versions.settings)
        try:
            await peer.start()
            figures["candidates"][str(count)] = await _misses(plan, peer, context)
        finally:
            await peer.close()
    context.say("scale: two versions")
    first, second = (bench_name(count) for count in (plan.candidates[-1], plan.candidates[0]))
    peer = RequeryPeer(first, context.folder / "loaded", versions.settings)
    try:
        await peer.start()
        one = await state(plan, peer, context)
        await post(peer.target.transport, f"/versions/{second}/load?wait=true", {})
        figures["loaded_versions"] = {"1": one, "2": await state(plan, peer, context)}
    finally:
        await peer.close()
    for entries in plan.entries:
        context.say(f"scale: {entries} entries in memory")
        figures["cache_entries"].append(await filled(entries, plan.hits))
    return Report("scale", figures, tuple(_rows(figures)))


async def _misses(plan: ScalePlan, peer: RequeryPeer, context: Context) -> dict[str, Any]:
    """Latency of misses, one caller."""
    before = await peer.work()
    asked = [context.queries.unseen() for _ in range(plan.misses)]
    turn = await closed_loop(peer.ask, asked, 1)
    work = await peer.work() - before
    return {
        "latency_ms": milliseconds(turn.latencies),
        "failures": len(turn.failures),
        "generated_tokens_per_request": round(work.generated / max(1, len(turn.latencies)), 2),
    }


async def state(plan: ScalePlan, peer: RequeryPeer, context: Context) -> dict[str, Any]:
    """Hits and misses of the default version, and the memory of all processes."""
    known = context.queries.known[0]

    async def hit(query: str) -> None:
        request = rewrite(query, "hit", deadline_s=30.0, named=True)
        reply = await peer.target.transport.send(request)
        if reply.code != 200:
            raise ServerFailed(f"answered {reply.code}")

    await hit(known)
    turn = await closed_loop(hit, [known] * plan.hits, 1)
    usages = [usage(process) for process in tree(peer.child.pid)]
    return {
        "misses": await _misses(plan, peer, context),
        "hit_latency_ms": milliseconds(turn.latencies),
        "resident_bytes": sum(one.rss_bytes for one in usages if one is not None),
    }


async def filled(entries: int, calls: int) -> dict[str, Any]:
    """Figures of a cache of that size, or a note that this machine has too little memory."""
    if entries * NEEDED_BYTES > psutil.virtual_memory().available:
        return {"entries": entries, "not_measured": "too little memory is free"}
    command = (sys.executable, "-m", "loadtests.bench.cache_fill", str(entries), str(calls))
    printed = await output(*command, timeout_s=_FILL_S)
    figures: dict[str, Any] = orjson.loads(printed.splitlines()[-1])
    return figures


def _rows(figures: dict[str, Any]) -> list[Row]:
    rows: list[Row] = []
    for count, found in figures["candidates"].items():
        latency = found["latency_ms"]
        note = f"{found['generated_tokens_per_request']} tokens generated"
        rows.append(Row(f"miss, candidates: {count}, one caller", _median(latency), note=note))
    for count, found in figures["loaded_versions"].items():
        hits, misses = found["hit_latency_ms"], found["misses"]["latency_ms"]
        rows.append(
            Row(
                f"{count} version{'s' if count != '1' else ''} loaded",
                f"hit {_median(hits)}, miss {_median(misses)}",
                note=f"{found['resident_bytes'] / 2**30:.2f} GiB resident",
            )
        )
    for found in figures["cache_entries"]:
        what = f"cache in memory, {found['entries']} entries"
        if "not_measured" in found:
            rows.append(Row(what, "not measured", note=found["not_measured"]))
            continue
        get, put = found["get_us"], found["put_us"]
        rows.append(
            Row(
                what,
                f"get p50 {get['p50']} us, put p50 {put['p50']} us",
                note=f"{found['bytes_per_entry']} bytes an entry, "
                f"estimated {found['estimated_bytes_per_entry']}; "
                f"garbage collection {found['collection_ms']} ms",
            )
        )
    return rows


def _median(latency: dict[str, float] | None) -> str:
    return "none answered" if latency is None else f"{latency['p50']:.2f} ms"
