"""The parts as a whole, against the real service with a scripted engine."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest

from loadtests.bench import hits, misses, scale, sweep
from loadtests.bench.hit_servers import BARE, MEMORY, REDIS
from loadtests.bench.hits import HitsPlan
from loadtests.bench.misses import MissesPlan
from loadtests.bench.peers import RequeryPeer
from loadtests.bench.scale import ScalePlan
from loadtests.bench.sweep import SweepPlan
from loadtests.processes import ServerFailed
from loadtests.queries import Queries, known_queries
from loadtests.runner import Context

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

_REAL = ["service.cli", "serve"]
_SCRIPTED = ["tests.support.serve_scripted", "--delay-ms", "5"]


@pytest.fixture(autouse=True)
def scripted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever starts the service gets one without a model."""
    popen = subprocess.Popen

    def start(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
        if command[-2:] == _REAL:
            command = [*command[:-2], *_SCRIPTED]
        return popen(command, **options)

    monkeypatch.setattr("loadtests.processes.subprocess.Popen", start)


def context(folder: Path) -> Context:
    return Context(Queries(known_queries()[0], seed=0), folder, 0, lambda _: None)


async def test_hits(tmp_path: Path) -> None:
    plan = HitsPlan(
        known=3, draws=20, connections=4, seconds=1.0, warm_s=0.2, open_s=1.0, rounds=2,
        load_share=0.05, litellm=False,
    )  # fmt: skip
    section = await hits.run(plan, context(tmp_path))
    figures = section.figures
    assert figures["not_measured"] == {}
    for one in figures["throughput"]:
        assert set(one) == {BARE, MEMORY, REDIS}
        assert all(told["per_s"] > 0 and told["failures"] == 0 for told in one.values())
    assert len(figures["latency"]) == 2
    for one in figures["latency"]:
        # Misses count as failures.
        assert all(told["requests"] > 0 and told["failures"] == 0 for told in one.values())
    assert {"memory to bare route", "Redis to bare route"} <= figures["ratios"].keys()


async def test_a_turn_of_misses(tmp_path: Path) -> None:
    plan = MissesPlan(single=4, batch=20, warm=2, rounds=2)
    section = await misses.compare(plan, context(tmp_path), [RequeryPeer("test-1", tmp_path, {})])
    told = section.figures["peers"]["Requery"]
    assert told["failures"] == 0
    assert told["modes"]["batch"]["requests"] == 40
    # Four candidates of two words and a tag, but one of one word.
    assert told["modes"]["batch"]["generated_tokens_per_request"] == 4 * 3 - 1
    assert section.figures["service_share"]["own_ms"]["count"] == 8
    assert section.figures["service_share"]["share_of_total"] < 1


async def test_a_hit_is_no_miss(tmp_path: Path) -> None:
    peer = RequeryPeer("test-1", tmp_path, {})
    await peer.start()
    try:
        await peer.ask("steele stake")
        peer.pause()
        peer.resume()
        with pytest.raises(ServerFailed, match="memory"):
            await peer.ask("steele stake")
        found = await scale.state(ScalePlan(misses=2, hits=5), peer, context(tmp_path))
        assert found["hit_latency_ms"]["count"] == 5
        assert found["misses"]["latency_ms"]["count"] == 2
        assert found["resident_bytes"] > 2**20
    finally:
        await peer.close()


async def test_the_sweep(tmp_path: Path) -> None:
    plan = SweepPlan(start_rate=10.0, factor=2.0, most_steps=2, step_s=3.0, known=10)
    section = await sweep.run(plan, context(tmp_path), settings={})
    figures = section.figures
    assert figures["steps"][0]["rate"] == 10.0
    assert sum(step["requests"] for step in figures["steps"]) > 10
    assert {"memory", "engine"} <= figures["stages_ms"].keys()
    assert len(section.rows) >= 2


async def test_a_cache_is_filled_in_a_process_of_its_own() -> None:
    told = await scale.filled(2_000, 100)
    assert told["bytes_per_entry"] > 500
    assert 1000 < told["estimated_bytes_per_entry"] < 20_000
    assert all(told[name]["p99"] >= told[name]["p50"] > 0 for name in ("get_us", "put_us"))
    huge = await scale.filled(10**12, 1)
    assert huge == {"entries": 10**12, "not_measured": "too little memory is free"}
