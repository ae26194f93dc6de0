from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from service.api.operator_schemas import VersionInfo, VersionsResponse
from service.api.versions import VersionsApi
from service.errors import EngineUnavailable
from service.versions.state import State
from tests.support.auth import admin_guard, open_guard
from tests.support.calling import calling, mounted
from tests.support.engine import ScriptedEngine
from tests.support.fleet import MIB, Fleet, memory
from tests.support.waiting import until

KEY = "correct horse battery"


class Edge:
    """The routes of a fleet, called in process."""

    def __init__(self, fleet: Fleet, http: httpx.AsyncClient, weights: dict[str, float]) -> None:
        self.fleet = fleet
        self.http = http
        self.weights = weights

    async def post(self, path: str, code: int, *, key: str = KEY) -> Any:
        headers = {"authorization": f"Bearer {key}", "x-requery-author": "ada"}
        response = await self.http.post(path, headers=headers)
        assert response.status_code == code, response.text
        assert response.headers["cache-control"] == "no-store"
        if code in (200, 202):
            VersionInfo.model_validate(response.json(), strict=True)
        return response.json() if response.content else None

    async def listed(self) -> dict[str, Any]:
        response = await self.http.get("/versions")
        assert response.status_code == 200
        content: dict[str, Any] = response.json()
        VersionsResponse.model_validate(content, strict=True)
        return content

    async def shown(self, name: str) -> dict[str, Any]:
        (one,) = (v for v in (await self.listed())["versions"] if v["name"] == name)
        found: dict[str, Any] = one
        return found


@asynccontextmanager
async def edge_of(fleet: Fleet, *, wait_s: float = 60.0) -> AsyncIterator[Edge]:
    weights: dict[str, float] = {}
    app = mounted(
        VersionsApi(
            versions=fleet.versions,
            reconciler=fleet.reconciler,
            loader=fleet.loader,
            memory=fleet.memory,
            weights=lambda: weights,
            guard=admin_guard(KEY),
            reader=open_guard(),
            wait_s=wait_s,
        ).router()
    )
    async with fleet.following(), calling(app) as http:
        await until(lambda: fleet.versions.default.up)
        yield Edge(fleet, http, weights)


@pytest.fixture
async def edge() -> AsyncIterator[Edge]:
    async with edge_of(Fleet(budget=memory(250, {"c": 200}))) as one:
        yield one


def slow(fleet: Fleet, name: str) -> ScriptedEngine:
    engine = fleet.engines.give(name, ScriptedEngine())
    engine.may_start.clear()
    return engine


async def test_versions_are_listed_with_all_that_is_known_of_them(edge: Edge) -> None:
    listed = await edge.listed()
    assert listed["default"] == "a"
    assert listed["durable"] is False
    assert listed["memory"] == {"limit_bytes": 250 * MIB, "reserved_bytes": 100 * MIB}
    assert [v["name"] for v in listed["versions"]] == ["a", "b", "c"]
    assert listed["versions"][0] == {
        "name": "a",
        "description": "scripted",
        "digest": edge.fleet["a"].digest,
        "state": "ready",
        "reason": None,
        "default": True,
        "wanted": True,
        "weight": 1.0,
        "requests": 0,
        "in_flight": 0,
        "latency_ms": None,
        "catalogue": None,
        "memory_bytes": 100 * MIB,
        "matrices": None,
    }
    engine = edge.fleet["a"].unchecked_engine
    assert isinstance(engine, ScriptedEngine)
    engine.matrices = "float16"
    assert (await edge.listed())["versions"][0]["matrices"] == "float16"
    assert edge.fleet.metric("requery_engine_matrices_info", version="a", matrices="float16") == 1
    b = listed["versions"][1]
    assert (b["state"], b["default"], b["wanted"], b["weight"]) == ("available", False, False, 0)


async def test_traffic_latency_and_weights_are_shown(edge: Edge) -> None:
    for ms in (1, 2, 3, 4, 100):
        edge.fleet["a"].observed(ms / 1000)
    edge.weights.update(a=0.25, b=0.75)
    with edge.fleet["a"].serving():
        a = await edge.shown("a")
    assert (a["requests"], a["in_flight"], a["weight"]) == (5, 1, 0.25)
    assert a["latency_ms"] == {"p50": 3.0, "p95": 100.0}
    assert (await edge.shown("b"))["weight"] == 0.75


async def test_loading_answers_at_once_and_the_state_follows(edge: Edge) -> None:
    engine = slow(edge.fleet, "b")
    answer = await edge.post("/versions/b/load", 202)
    assert (answer["name"], answer["state"], answer["wanted"]) == ("b", "loading", True)
    assert (await edge.post("/versions/b/load", 202))["state"] == "loading"
    engine.may_start.set()
    await until(lambda: edge.fleet["b"].up)
    assert (await edge.post("/versions/b/load", 200))["state"] == "ready"
    assert edge.fleet.engines.count("b") == 1
    (entry,) = await edge.fleet.document_store.notes(10)
    assert entry["author"] == "admin/ada"


async def test_waiting_has_an_end() -> None:
    fleet = Fleet()
    slow(fleet, "b")
    async with edge_of(fleet, wait_s=0.01) as edge:
        assert (await edge.post("/versions/b/load?wait=true", 202))["state"] == "loading"
        await edge.post("/versions/b/unload?wait=true", 200)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (EngineUnavailable("no device"), "no device"),
        (ZeroDivisionError("a bug"), "ZeroDivisionError (the log has the details)"),
    ],
)
async def test_a_load_that_is_waited_for_gives_the_reason_of_its_failure(
    edge: Edge, fault: Exception, reason: str
) -> None:
    edge.fleet.engines.give("b", ScriptedEngine(start_fault=fault))
    problem = await edge.post("/versions/b/load?wait=true", 500)
    assert problem["type"] == "urn:requery:problem:version-load-failed"
    assert problem["detail"] == f"version b could not be loaded: {reason}"
    b = await edge.shown("b")
    assert (b["state"], b["reason"]) == ("failed", reason)


async def test_unloading_drains_and_then_it_is_available(edge: Edge) -> None:
    await edge.post("/versions/b/load?wait=true", 200)
    with edge.fleet["b"].serving():
        answer = await edge.post("/versions/b/unload", 202)
        assert (answer["state"], answer["in_flight"]) == ("draining", 1)
        problem = await edge.post("/versions/b/load", 409)
        assert problem["type"] == "urn:requery:problem:version-draining"
    await until(lambda: edge.fleet["b"].state is State.AVAILABLE)
    assert (await edge.post("/versions/b/unload?wait=true", 200))["state"] == "available"
    assert not (await edge.shown("b"))["wanted"]


async def test_what_does_not_fit_is_refused_and_not_started(edge: Edge) -> None:
    problem = await edge.post("/versions/c/load", 507)
    assert problem["type"] == "urn:requery:problem:insufficient-memory"
    assert "needs about 200 MiB and 150 MiB of 250 MiB are free" in problem["detail"]
    c = await edge.shown("c")
    assert (c["state"], c["wanted"]) == ("available", False)
    assert edge.fleet.engines.count("c") == 0


async def test_a_version_that_only_other_replicas_know_can_be_taken_out_of_the_roster() -> None:
    fleet = Fleet()
    await fleet.document_store.write("roster", {"versions": ["a", "gone"]}, schema=1, expected=0)
    async with edge_of(fleet) as edge:
        assert await edge.post("/versions/gone/unload", 204) is None
        await edge.post("/versions/gone/unload", 404)


@pytest.mark.parametrize("wait", ["1", "", "yes", "True"])
async def test_a_wait_that_is_neither_true_nor_false_is_refused(edge: Edge, wait: str) -> None:
    for action in ("load", "unload"):
        problem = await edge.post(f"/versions/b/{action}?wait={wait}", 422)
        assert problem["errors"] == [{"field": "query wait", "detail": "must be true or false"}]
    assert edge.fleet["b"].state is State.AVAILABLE
