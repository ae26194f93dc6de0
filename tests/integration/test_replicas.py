"""Two replicas on one Redis: what one is told, both do, and a restart remembers it."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from functools import partial
from typing import Any

import pytest
import redis

from service.versions.version import ModelVersion
from tests.support.engine import ScriptedEngine
from tests.support.redis_server import RedisServer
from tests.support.service import Serve, Service, serving
from tests.support.versions import Engines, make_manifest
from tests.support.waiting import until

pytestmark = pytest.mark.integration

GENEROUS = {"redis_read_budget_ms": 2000, "redis_write_budget_ms": 2000}
"""Budgets that a busy machine keeps."""
PLAN = {"default": "test-1", "weights": {}, "salt": "s"}
UNITS = 10_000
LETTERS = str.maketrans("0123456789", "abcdefghij")


async def replica(serve: Serve, server: RedisServer, **options: Any) -> Service:
    """A replica that knows test-1, its default, and other-1."""
    return await serve(
        ScriptedEngine(default=(("test stake", 0.98),)),
        more_versions=(ModelVersion(make_manifest("other-1")),),
        more_engines=Engines(),
        redis_url=server.url,
        **GENEROUS,
        **options,
    )


async def plan(service: Service, **changes: Any) -> int:
    """Store a routing plan; its revision. On a busy machine Redis may be given up at first."""
    put = partial(service.client.put, json=PLAN | changes, headers={"if-match": "*"})
    while (response := await put("/routing")).status_code == 503:
        pass
    assert response.status_code == 200, response.text
    return int(response.json()["revision"])


async def load_other(service: Service, *others: Service) -> None:
    response = await service.client.post("/versions/other-1/load?wait=true")
    assert response.status_code == 200, response.text
    for one in others:

        async def ready(one: Service = one) -> bool:
            versions = (await one.client.get("/versions")).json()["versions"]
            return any(v["name"] == "other-1" and v["state"] == "ready" for v in versions)

        await until(ready)


async def follows(service: Service, revision: int) -> None:
    async def seen() -> bool:
        shown = (await service.client.get("/routing")).json()
        return bool(shown["revision"] == revision)

    await until(seen)


async def test_routing_and_loading_reach_the_other_replica(
    server: RedisServer, serve: Serve
) -> None:
    here, there = await replica(serve, server), await replica(serve, server)
    await load_other(here, there)
    await follows(there, await plan(here, default="other-1"))
    assert (await there.rewrite("stake"))["model_version"] == "other-1"
    await follows(here, await plan(there))
    assert (await here.rewrite("stake"))["model_version"] == "test-1"


async def arms(service: Service, units: int) -> list[str]:
    """The version that answers each of the first units; asked in batches, out of the cache."""
    found = []
    for start in range(0, units, 256):
        queries = [{"query": "stake", "unit_id": f"u{i}"} for i in range(start, start + 256)]
        response = await service.client.post(
            "/rewrite/batch", json={"queries": queries[: units - start], "deadline_ms": 30_000}
        )
        assert response.status_code == 200
        found += [one["model_version"] for one in response.json()["answers"]]
    return found


@pytest.mark.timeout(300)
async def test_ten_thousand_units_are_split_alike_and_few_move(
    server: RedisServer, serve: Serve
) -> None:
    here, there = await replica(serve, server), await replica(serve, server)
    await load_other(here, there)
    await follows(there, await plan(here, weights={"test-1": 0.5, "other-1": 0.5}))
    even = await arms(here, UNITS)
    assert await arms(there, UNITS) == even
    # Four standard deviations of a fair coin: the split is of one salt, so it is always the same.
    assert abs(Counter(even)["test-1"] - UNITS / 2) < 4 * math.sqrt(UNITS / 4)
    await follows(there, await plan(here, weights={"test-1": 0.6, "other-1": 0.4}))
    uneven = await arms(there, UNITS)
    moved = [(a, b) for a, b in zip(even, uneven, strict=True) if a != b]
    assert set(moved) == {("other-1", "test-1")}, "only from the arm whose share fell"
    assert len(moved) < UNITS / 10 + 4 * math.sqrt(UNITS * 0.09)


async def test_a_restart_remembers_routing_and_what_was_loaded(
    server: RedisServer, serve: Serve
) -> None:
    async with serving() as first_life:
        service = await replica(first_life, server)
        await load_other(service)
        revision = await plan(service, default="other-1", weights={"other-1": 1.0})
        assert (await service.rewrite("stake"))["source"] == "engine"
        await service.idle()

        async def stored() -> bool:
            return bool(await service.metric(
                "requery_cache_operations_total", tier="redis", op="put", result="ok"
            ))  # fmt: skip

        await until(stored)
    again = await replica(serve, server)
    shown = (await again.client.get("/routing")).json()
    assert (shown["revision"], shown["default"]) == (revision, "other-1")
    answer = await again.rewrite("stake", unit_id="u1")
    assert (answer["model_version"], answer["source"]) == ("other-1", "redis")


async def test_a_purge_empties_the_memory_of_all_replicas(
    server: RedisServer, serve: Serve
) -> None:
    here, there = await replica(serve, server), await replica(serve, server)
    await here.rewrite("stake")
    await here.idle()

    async def shared() -> bool:
        return (await there.rewrite("stake"))["source"] in ("redis", "memory")

    await until(shared)
    assert (await there.rewrite("stake"))["source"] == "memory"
    asked = there.engine.generated.count("stake")
    response = await here.client.post("/cache/purge", json={"query": "stake"})
    assert response.json()["replicas"] == "all"
    assert response.json()["redis"] == 1

    async def forgotten() -> bool:
        await there.rewrite("stake")
        return there.engine.generated.count("stake") > asked

    await until(forgotten)


@pytest.mark.timeout(300)
async def test_changing_the_default_under_load_fails_no_request(
    server: RedisServer, serve: Serve
) -> None:
    here, there = await replica(serve, server), await replica(serve, server)
    await load_other(here, there)
    done = False
    answers: Counter[tuple[str, str]] = Counter()

    def answers_of(version: str) -> int:
        return sum(count for (answered, _), count in answers.items() if answered == version)

    async def shoppers(service: Service, offset: int) -> None:
        n = 0
        while not done:
            n += 1
            # Some queries are asked again and again, by all; others are new.
            # No digits: a rewrite has to keep those.
            name = n % 10 if n % 2 else n * 4 + offset
            query = f"stake {str(name).translate(LETTERS)}"
            answer = await service.rewrite(query, deadline_ms=30_000)
            assert answer["status"] == "ok"
            version = answer["model_version"]
            assert answer["rewrites"][0]["text"] == f"{version.partition('-')[0]} stake"
            answers[version, answer["source"]] += 1
            await asyncio.sleep(0.001)

    load = [
        asyncio.create_task(shoppers(service, offset))
        for offset, service in enumerate((here, there, here, there))
    ]
    for i in range(20):
        default = ("other-1", "test-1")[i % 2]
        await plan((here, there)[i % 2], default=default)
        enough = answers_of(default) + 20
        await until(lambda: answers_of(default) >= enough)  # noqa: B023 - awaited at once
    done = True
    await asyncio.gather(*load)
    assert {version for version, _ in answers} == {"test-1", "other-1"}
    assert {"engine", "memory"} <= {source for _, source in answers}
    for service in (here, there):
        assert await service.metric("requery_version_fallbacks_total") == 0


async def test_a_replica_that_lacks_the_kill_switch_s_version_gives_no_rewrites(
    server: RedisServer, serve: Serve
) -> None:
    here = await replica(serve, server)
    lacking = await serve(redis_url=server.url, **GENEROUS)
    await load_other(here)
    body = {"version": "other-1", "reason": "test-1 drops brands"}
    assert (await here.client.put("/routing/kill", json=body)).status_code == 200
    assert (await here.rewrite("stake"))["model_version"] == "other-1"

    async def off() -> bool:
        answer = await lacking.rewrite("stake")
        return (answer["rewrites"], answer["status"], answer["source"]) == ([], "none", "none")

    await until(off)
    assert (await here.client.delete("/routing/kill")).status_code == 200

    async def on() -> bool:
        return bool((await lacking.rewrite("stake"))["rewrites"])

    await until(on)


async def test_exposures_reach_the_stream(server: RedisServer, serve: Serve) -> None:
    service = await replica(serve, server)
    await plan(service, weights={"test-1": 1.0})
    await service.rewrite("stake", unit_id="u1")
    with redis.Redis(port=server.port) as client:

        async def written() -> bool:
            return bool(client.exists("requery:exposures"))

        await until(written)
        ((_, fields),) = client.xrange("requery:exposures")
    assert b'"unit_id":"u1"' in fields[b"record"]
    assert b'"arm":"test-1"' in fields[b"record"]
