"""What more candidates, more loaded versions and a larger cache cost."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import orjson

from loadtests.bench.cache_fill import NEEDED_BYTES
from loadtests.bench.child import tree
from loadtests.bench.peer import PeerFailed, closed_loop
from loadtests.bench.plans import ScalePlan
from loadtests.bench.requery_peer import RequeryPeer
from loadtests.bench.section import Row, Say, Section
from loadtests.bench.versions import BenchVersions, bench_name
from loadtests.exchange import Request
from loadtests.queries import Queries
from loadtests.scenarios.traffic import rewrite
from loadtests.summary import milliseconds
from loadtests.target import Target

_LOAD_S = 900.0
_FILL_S = 1200.0


async def run(
    plan: ScalePlan, versions: BenchVersions, queries: Queries, folder: Path, say: Say
) -> Section:
    """Candidates, loaded versions, entries, one after the other."""
    figures: dict[str, Any] = {"candidates": {}, "loaded_versions": {}, "cache_entries": []}
    for count in plan.candidates:
        say(f"scale: {count} candidates")
        figures["candidates"][str(count)] = await _candidates(
            plan, versions, queries, folder, count
        )
    say("scale: two versions")
    figures["loaded_versions"] = await _loaded(plan, versions, queries, folder)
    for entries in plan.entries:
        say(f"scale: {entries} entries in memory")
        figures["cache_entries"].append(await _filled(entries, plan.hits))
    return Section("scale", figures, tuple(_rows(figures)))


async def _candidates(
    plan: ScalePlan, versions: BenchVersions, queries: Queries, folder: Path, count: int
) -> dict[str, Any]:
    """Latency of a miss with so many candidates, one caller."""
    peer = RequeryPeer(bench_name(count), folder / f"n{count}", versions.settings)
    await peer.start()
    try:
        return await _misses(peer, queries, plan.misses)
    finally:
        await peer.close()


async def _misses(peer: RequeryPeer, queries: Queries, count: int) -> dict[str, Any]:
    before = await peer.work()
    turn = await closed_loop(peer.ask, [queries.unseen() for _ in range(count)], 1)
    work = await peer.work() - before
    return {
        "latency_ms": milliseconds(turn.latencies),
        "failures": len(turn.failures),
        "generated_tokens_per_request": round(work.generated / max(1, len(turn.latencies)), 2),
    }


async def _loaded(
    plan: ScalePlan, versions: BenchVersions, queries: Queries, folder: Path
) -> dict[str, Any]:
    """Hits and misses of the default with one and with two versions loaded, and memory."""
    first, second = (bench_name(count) for count in (plan.candidates[-1], plan.candidates[0]))
    peer = RequeryPeer(first, folder / "loaded", versions.settings)
    await peer.start()
    try:
        one = await _state(plan, peer, queries)
        await _load(peer.target, second)
        return {"1": one, "2": await _state(plan, peer, queries)}
    finally:
        await peer.close()


async def _state(plan: ScalePlan, peer: RequeryPeer, queries: Queries) -> dict[str, Any]:
    known = queries.known[0]
    transport = peer.target.transport

    async def hit(query: str) -> None:
        reply = await transport.send(rewrite(query, "hit", deadline_s=30.0, named=True))
        if reply.code != 200:
            raise PeerFailed(f"answered {reply.code}")

    await hit(known)
    turn = await closed_loop(hit, [known] * plan.hits, 1)
    usages = [process.usage() for process in tree(peer.target.process.pid)]
    return {
        "misses": await _misses(peer, queries, plan.misses),
        "hit_latency_ms": milliseconds(turn.latencies),
        "resident_bytes": sum(usage.rss_bytes for usage in usages if usage is not None),
    }


async def _load(target: Target, name: str) -> None:
    """Load a version, and wait until it is ready."""
    path = f"/versions/{name}/load?wait=true"
    request = Request("load", path, b"", deadline_s=_LOAD_S)
    async with asyncio.timeout(_LOAD_S):
        reply = await target.transport.send(request)
    if reply.code != 200:
        raise PeerFailed(f"{path} was answered with {reply.code} {reply.status}")


async def _filled(entries: int, calls: int) -> dict[str, Any]:
    """Figures of a cache of that size; says so where this machine has not the memory for it."""
    if entries * NEEDED_BYTES > _available():
        return {"entries": entries, "not_measured": "too little memory is free"}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "loadtests.bench.cache_fill",
        str(entries),
        str(calls),
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_FILL_S):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise PeerFailed(f"a cache of {entries} entries cannot be filled")
    told: dict[str, Any] = orjson.loads(said)
    return told


def _available() -> int:
    """Bytes that may be taken without swapping, by the kernel's own estimate."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    return int(fields["MemAvailable"].split()[0]) * 1024


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
