"""The whole application under its control plane, over HTTP, on scripted engines and no Redis."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from service.versions.version import ModelVersion
from tests.support.engine import ScriptedEngine
from tests.support.service import Serve, Service
from tests.support.versions import Engines, make_manifest

PLAN = {"default": "test-1", "weights": {}, "salt": "s"}


async def two(serve: Serve, **options: Any) -> Service:
    """A service with test-1 as its default, and other-1 loaded."""
    service = await serve(more_versions=(ModelVersion(make_manifest("other-1")),), **options)
    response = await service.client.post("/versions/other-1/load?wait=true")
    assert response.status_code == 200, response.text
    return service


async def plan(service: Service, code: int = 200, **changes: Any) -> dict[str, Any]:
    response = await service.client.put("/routing", json=PLAN | changes, headers={"if-match": "*"})
    assert response.status_code == code, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def test_the_default_changes_under_way_without_a_cold_answer(serve: Serve) -> None:
    service = await two(serve)
    assert (await service.rewrite("stake"))["model_version"] == "test-1"
    await plan(service, default="other-1")
    answer = await service.rewrite("stake")
    assert answer["model_version"] == "other-1"
    assert answer["source"] == "engine", "no answer of another version out of the cache"
    assert answer["rewrites"][0]["text"] == "other stake"
    assert (await service.client.get("/readyz")).json()["model_version"] == "other-1"
    await plan(service)
    assert (await service.rewrite("stake"))["source"] == "memory"


async def test_a_version_that_is_not_ready_gets_no_requests(serve: Serve) -> None:
    service = await serve(more_versions=(ModelVersion(make_manifest("other-1")),))
    problem = await plan(service, 409, default="other-1")
    assert "other-1" in problem["detail"]
    problem = await plan(service, 409, weights={"test-1": 0.5, "other-1": 0.5})
    assert "other-1" in problem["detail"]
    problem = await plan(service, 422, default="nobody")
    assert problem["errors"][0]["field"] == "default"
    assert (await service.client.get("/routing")).json()["revision"] == 0
    assert (await service.rewrite("stake"))["model_version"] == "test-1"


async def test_units_are_split_and_stick_while_pins_go_before(serve: Serve) -> None:
    service = await two(serve)
    await plan(service, weights={"test-1": 0.5, "other-1": 0.5})
    first = [(await service.rewrite("stake", unit_id=f"u{i}"))["model_version"] for i in range(60)]
    again = [(await service.rewrite("stake", unit_id=f"u{i}"))["model_version"] for i in range(60)]
    assert first == again
    assert set(first) == {"test-1", "other-1"}
    pinned = await service.rewrite("stake", unit_id="u1", model_version="other-1")
    assert pinned["model_version"] == "other-1"
    assert (await service.rewrite("stake"))["model_version"] == "test-1"


async def test_exposures_are_logged_for_assigned_units_alone(
    serve: Serve, capsys: pytest.CaptureFixture[str]
) -> None:
    service = await two(serve)
    await plan(service, weights={"test-1": 0.5, "other-1": 0.5})
    await service.rewrite("stake", unit_id="u1")
    await service.rewrite("stake", unit_id="u2", model_version="test-1")
    await service.rewrite("stake")

    async def written() -> bool:
        return await service.metric("requery_exposures_total", result="written") == 1

    await service.until(written)
    lines = [line for line in capsys.readouterr().out.splitlines() if "exposure" in line]
    assert len([line for line in lines if "unit_id" in line]) == 1


async def test_this_replica_is_stopped_without_the_others(serve: Serve) -> None:
    service = await two(serve)
    stop = {"version": None, "reason": "wrong brands"}
    assert (await service.client.put("/routing/kill/local", json=stop)).status_code == 200
    assert (await service.rewrite("steele stake", model_version="other-1"))["status"] == "none"
    assert await service.metric("requery_local_kill") == 1
    to_other = stop | {"version": "other-1"}
    assert (await service.client.put("/routing/kill/local", json=to_other)).status_code == 200
    assert (await service.rewrite("steele stake"))["model_version"] == "other-1"
    # What is needed in an emergency is not unloaded under it.
    assert (await service.client.post("/versions/other-1/unload")).status_code == 409
    assert (await service.client.delete("/routing/kill/local")).status_code == 200
    assert (await service.rewrite("steele stake"))["model_version"] == "test-1"
    assert await service.metric("requery_local_kill") == 0


async def test_the_kill_switch_goes_before_everything_and_back(serve: Serve) -> None:
    service = await two(serve)
    await plan(service, weights={"test-1": 0.5, "other-1": 0.5})
    body = {"version": None, "reason": "bad rewrites in the news"}
    assert (await service.client.put("/routing/kill", json=body)).status_code == 200
    for fields in ({}, {"unit_id": "u1"}, {"model_version": "other-1"}):
        answer = await service.rewrite("stake", **fields)
        assert (answer["rewrites"], answer["status"], answer["source"]) == ([], "none", "none")
    body = {"version": "other-1", "reason": "the old one"}
    assert (await service.client.put("/routing/kill", json=body)).status_code == 200
    assert (await service.rewrite("stake", unit_id="u1"))["model_version"] == "other-1"
    assert (await service.client.delete("/routing/kill")).status_code == 200
    assert (await service.rewrite("stake"))["model_version"] == "test-1"
    trail = (await service.client.get("/audit")).json()["entries"]
    assert [entry["action"] for entry in trail[:3]] == [
        "routing.revive", "routing.kill", "routing.kill",
    ]  # fmt: skip


async def test_an_assigned_version_that_is_gone_is_replaced_by_the_default(serve: Serve) -> None:
    engines = Engines()
    service = await two(serve, more_engines=engines)
    await plan(service, weights={"other-1": 1.0})
    refused = await service.client.post("/versions/other-1/unload")
    assert refused.status_code == 409
    assert "routing" in refused.json()["detail"]
    engines["other-1"].alive = False
    answer = await service.rewrite("nail", unit_id="u1")
    assert answer["status"] in ("ok", "fallback")


async def test_a_stale_answer_is_served_and_made_anew(serve: Serve) -> None:
    service = await serve(cache_soft_ttl_s=1e-9, cache_ttl_jitter=0)
    assert (await service.rewrite("stake"))["source"] == "engine"
    await service.idle()
    assert (await service.rewrite("stake"))["source"] == "memory"
    await service.idle()
    assert service.engine.generated == ["stake", "stake"]
    assert await service.metric("requery_refreshes_total", result="started") == 1


async def test_refreshing_is_the_first_thing_to_go(serve: Serve) -> None:
    service = await serve(cache_soft_ttl_s=1e-9, cache_ttl_jitter=0, refresh_max_in_flight=0)
    await service.rewrite("stake")
    await service.idle()
    assert (await service.rewrite("stake"))["source"] == "memory"
    assert service.engine.generated == ["stake"]
    assert await service.metric("requery_refreshes_total", result="shed") == 1


class TestPurge:
    async def purge(self, service: Service, code: int = 200, **body: Any) -> dict[str, Any]:
        response = await service.client.post("/cache/purge", json=body)
        assert response.status_code == code, response.text
        answer: dict[str, Any] = response.json()
        return answer

    async def test_by_query_by_version_and_by_both(self, serve: Serve) -> None:
        service = await two(serve)
        for query in ("stake", "nail"):
            for name in ("test-1", "other-1"):
                await service.rewrite(query, model_version=name)
        await service.idle()
        assert await self.purge(service, query="STAKE ", model_version="other-1") == {
            "memory": 1, "redis": 0, "replicas": "this one",
        }  # fmt: skip
        assert (await self.purge(service, query="stake"))["memory"] == 1
        assert (await self.purge(service, model_version="other-1"))["memory"] == 1
        assert (await service.rewrite("nail"))["source"] == "memory"
        assert (await service.rewrite("stake"))["source"] == "engine"
        trail = (await service.client.get("/audit")).json()["entries"]
        assert [entry["action"] for entry in trail[:3]] == [
            "cache.purge_version", "cache.purge_query", "cache.purge_query",
        ]  # fmt: skip
        assert "stake" not in json.dumps([e for e in trail if e["document"] == "purges"])

    @pytest.mark.parametrize("what", [{"query": "stake"}, {"model_version": "test-1"}], ids=str)
    async def test_a_generation_under_way_does_not_undo_it(
        self, serve: Serve, what: dict[str, Any]
    ) -> None:
        engine = ScriptedEngine(held=True)
        service = await serve(engine)
        under_way = asyncio.create_task(service.rewrite("stake"))
        await engine.reached_hold.wait()
        await self.purge(service, **what)
        engine.release()
        assert (await under_way)["status"] == "ok"
        await service.idle()
        assert (await service.rewrite("stake"))["source"] == "engine"
        await service.idle()
        assert (await service.rewrite("stake"))["source"] == "memory"

    async def test_it_needs_something_to_purge(self, serve: Serve) -> None:
        service = await serve()
        assert "model_version" in (await self.purge(service, 422))["errors"][0]["detail"]
        assert (await self.purge(service, 404, model_version="nobody"))["status"] == 404
        await self.purge(service, 422, query=" ")


async def test_shadow_traffic_sees_what_was_served(serve: Serve) -> None:
    engines = Engines()
    candidate = ScriptedEngine(default=(("steel stake", 0.98), ("t post", 0.9)))
    engines.give("other-1", candidate)
    service = await two(serve, more_engines=engines)
    await plan(service, shadow={"version": "other-1", "share": 1.0})
    answer = await service.rewrite("stake")
    assert answer["model_version"] == "test-1"

    async def offered() -> bool:
        if not await service.metric("requery_shadow_total", result="compared"):
            await service.rewrite("stake")
        return await service.metric("requery_shadow_total", result="compared") > 0

    await service.until(offered)
    assert set(candidate.generated) == {"stake"}
    assert await service.metric("requery_shadow_rewrites_total", side="common") >= 1
    # What the candidate says reaches no shopper and no cache.
    assert (await service.rewrite("stake", model_version="other-1"))["source"] == "engine"
