"""``requery precompute`` as a process, with a real Redis, killed and run again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from service.cache import codec
from service.cache.keys import cache_key
from service.cache.lifetimes import Lifetimes
from service.cache.metrics import CacheMetrics
from service.cache.redis_tier import RedisTier
from service.config.settings import Settings
from service.errors import EngineUnavailable, QueryTooLong
from service.precompute.errors import PrecomputeError
from service.precompute.fillers import EngineFiller
from service.precompute.journal import Result
from service.redis.client import connect
from service.versions.version import ModelVersion
from tests.support.engine import Script, ScriptedEngine
from tests.support.model_versions import write_full_version
from tests.support.redis_server import RedisServer
from tests.support.service import Serve
from tests.support.versions import make_manifest
from tests.support.waiting import wait_until

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
BATCH = 20
PATIENCE_S = 90
"""Bounds a process that should have got on; nothing is asserted about how long it took."""


class Log:
    """A query log of ``n`` queries, and the runs over it."""

    def __init__(self, folder: Path, server: RedisServer, n: int) -> None:
        self.digest = write_full_version(folder / "models" / "full-1").digest
        self.path = folder / "queries.csv"
        self.queries = [f"stake {i:04}" for i in range(n)]
        rows = [f"{query.title()},{2 * n - i}" for i, query in enumerate(self.queries)]
        self.path.write_text("\n".join(["query,count", *rows, ""]))
        self.journal = folder / "queries.csv.journal"
        self._server = server
        self._generated = folder / "generated"
        self._generated.touch()
        self._environment = {
            **os.environ,
            "REQUERY_MODEL_SOURCES": str(folder / "models"),
            "REQUERY_DEFAULT_VERSION": "full-1",
            "REQUERY_REDIS_URL": server.url,
            "GENERATED": str(self._generated),
        }

    def start(self, *options: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [
                sys.executable, "-m", "tests.support.precompute", "precompute", str(self.path),
                "--batch-size", str(BATCH), "--concurrency", "4", "--coverage", "1", *options,
            ],
            cwd=ROOT, env=self._environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def finish(self, *options: str) -> tuple[int, str, str]:
        """Exit status, report and errors of a run to the end."""
        process = self.start(*options)
        try:
            out, err = process.communicate(timeout=PATIENCE_S)
        finally:
            process.kill()
        return process.returncode, out, err

    def generated(self) -> list[str]:
        """Queries whose generation has begun, over all runs."""
        return self._generated.read_text().splitlines()

    def batches(self) -> int:
        """Batches in the journal."""
        return self.journal.read_bytes().count(b"\n") - 1 if self.journal.exists() else 0

    def cached(self) -> int:
        """Queries that are in Redis."""
        with self._server.client() as client:
            return sum(client.exists(cache_key(self.digest, query)) for query in self.queries)


def wait_for_batches(log: Log, process: subprocess.Popen[str], n: int) -> None:
    wait_until(lambda: log.batches() >= n, alive=lambda: process.poll() is None, poll_s=0.01)


def test_a_run_that_is_killed_again_and_again_redoes_a_batch_each_time_at_most(
    tmp_path: Path, server: RedisServer
) -> None:
    log = Log(tmp_path, server, 300)
    for kill in range(2):
        process = log.start()
        wait_for_batches(log, process, log.batches() + 2)
        process.kill()
        process.communicate()
        assert log.cached() < 300, f"kill {kill} came too late to say anything"
    code, out, err = log.finish()
    assert code == 0, err
    generated = log.generated()
    assert set(generated) == set(log.queries)
    assert len(generated) <= 300 + 2 * BATCH
    assert log.cached() == 300
    assert out.startswith("columns    queries from 'query', searches from 'count'\n")
    assert "coverage   100.0% of all searches are in the cache now" in out
    assert "done by an earlier run" in out
    assert not log.journal.exists()


def test_the_journal_alone_is_enough_to_lose_no_more_than_a_batch(
    tmp_path: Path, server: RedisServer
) -> None:
    log = Log(tmp_path, server, 300)
    process = log.start()
    wait_for_batches(log, process, 2)
    process.kill()
    process.communicate()
    # Nothing is found in the cache, so that whatever the journal lacks is generated again.
    with server.client() as client:
        client.flushall()
    assert log.finish()[0] == 0
    assert set(log.generated()) == set(log.queries)
    assert len(log.generated()) <= 300 + BATCH


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_told_to_stop_redoes_nothing(
    tmp_path: Path, server: RedisServer, number: signal.Signals
) -> None:
    log = Log(tmp_path, server, 200)
    process = log.start()
    wait_for_batches(log, process, 1)
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 128 + number, err
    assert "run this again to go on" in err
    assert "journal" in out
    so_far = len(log.generated())
    assert log.cached() == so_far < 200
    code, _, err = log.finish()
    assert code == 0, err
    assert len(log.generated()) == 200
    assert log.cached() == 200


def test_what_is_cached_already_is_skipped_and_the_head_is_enough(
    tmp_path: Path, server: RedisServer
) -> None:
    log = Log(tmp_path, server, 60)
    assert log.finish("--top", "20")[0] == 0
    assert sorted(log.generated()) == log.queries[:20]
    code, out, _ = log.finish("--top", "30")
    assert code == 0
    assert sorted(log.generated()) == log.queries[:30]
    assert "generated  10 (" in out
    assert "skipped    20 in the cache already" in out
    assert "30 of 60" in out
    code, out, err = log.finish("--top", "31", "--json")
    assert code == 0
    figures = json.loads(out)
    assert (figures["generated"], figures["cached"], figures["chosen"]) == (1, 30, 31)
    assert (figures["query_column"], figures["count_column"]) == ("query", "count")
    assert "columns    queries from 'query'" in err


def test_a_redis_that_goes_away_ends_the_run_and_what_was_done_stays_noted(
    tmp_path: Path, server: RedisServer
) -> None:
    log = Log(tmp_path, server, 2000)
    process = log.start()
    wait_for_batches(log, process, 1)
    server.stop()
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1
    assert "the last 64 queries failed" in err
    assert "Traceback" not in err
    assert log.batches() >= 1
    assert "Redis" in out


async def precomputed(
    server: RedisServer, engine: ScriptedEngine, *queries: str, ahead_s: float = 0.0
) -> list[Result]:
    """What comes of each query in a run by a clock that is ``ahead_s`` seconds fast."""
    lifetimes = replace(Lifetimes.of(Settings()), clock=lambda: time.time() + ahead_s)
    redis = RedisTier(
        connect(server.url, max_connections=4, timeout_s=10),
        lifetimes=lifetimes,
        write_budget_s=10,
        metrics=CacheMetrics(CollectorRegistry()),
    )
    filler = EngineFiller(
        ModelVersion(make_manifest()), engine, redis, lifetimes=lifetimes, bound_s=60, concurrency=4
    )
    try:
        return [outcome.result for outcome in await filler.fill(queries)]
    finally:
        await redis.close()


SCRIPT: dict[str, Script] = {
    "steele stake": [
        ("steel stake", 0.98),
        ("Steele stakes", 0.9),
        ("st\u00e4hl", 1 / 3),
        ("cut", None),
    ],
    "zzz": [("zzz", 0.9)],
}


@pytest.mark.parametrize("query", ["steele stake", "zzz"], ids=["answers", "empty"])
async def test_an_entry_is_the_one_that_the_service_would_write(
    server: RedisServer, serve: Serve, query: str
) -> None:
    key = cache_key(make_manifest().digest, query)
    found = []
    with server.client() as client:
        service = await serve(
            ScriptedEngine(SCRIPT), redis_url=server.url, redis_write_budget_ms=10_000
        )
        await service.rewrite(query, deadline_ms=20_000)
        await service.idle()
        for source in ("service", "precompute"):
            if source == "precompute":
                client.delete(key)
                assert await precomputed(server, ScriptedEngine(SCRIPT), query) == [
                    Result.GENERATED
                ]
            raw = client.get(key)
            entry = codec.decode(raw, key, Lifetimes(hard_s=1e9))
            found.append((entry.generation, entry.empty, client.pttl(key)))
    (made, empty, life), (again, again_empty, again_life) = found
    assert made == again
    assert empty == again_empty == (query == "zzz")
    assert abs(life - again_life) < PATIENCE_S * 1000


async def test_a_service_answers_from_what_was_precomputed(
    server: RedisServer, serve: Serve
) -> None:
    assert await precomputed(server, ScriptedEngine(SCRIPT), "steele stake") == [Result.GENERATED]
    service = await serve(redis_url=server.url, redis_read_budget_ms=10_000)
    answer = await service.rewrite("Steele  Stake", deadline_ms=20_000)
    assert answer["source"] == "redis"
    assert answer["rewrites"][0] == {"text": "steel stake", "relevance": 0.98}
    assert service.engine.generated == []


async def test_a_stale_entry_is_made_anew_and_a_fresh_one_is_not(server: RedisServer) -> None:
    engine = ScriptedEngine(SCRIPT)
    stale_s = 1.1 * Settings().cache_soft_ttl_s
    found = [
        await precomputed(server, engine, "steele stake", ahead_s=ahead_s)
        for ahead_s in (0.0, stale_s, stale_s)
    ]
    assert found == [[Result.GENERATED], [Result.GENERATED], [Result.CACHED]]


async def test_a_redis_that_keeps_nothing_is_a_failure(server: RedisServer) -> None:
    with server.client() as client:
        client.config_set("maxmemory", "1")
    assert await precomputed(server, ScriptedEngine(SCRIPT), "steele stake") == [Result.FAILED]


async def test_faults_of_the_engine(server: RedisServer) -> None:
    too_long = ScriptedEngine(fault=QueryTooLong("too long"))
    assert await precomputed(server, too_long, "a") == [Result.REFUSED]
    with pytest.raises(PrecomputeError, match="run this again"):
        await precomputed(server, ScriptedEngine(fault=EngineUnavailable("dead")), "a")
