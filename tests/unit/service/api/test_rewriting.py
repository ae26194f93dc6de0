"""POST /rewrite: every status and source, against the documented schema."""

from __future__ import annotations

import asyncio

import pytest

from service.api.operator_schemas import VersionsResponse
from service.api.schemas import RelevanceResponse, RewriteResponse
from service.engine.corrected import VOTES, CorrectedEngine
from service.engine.spelling import Corrector
from service.errors import EngineUnavailable, QueryTooLong
from service.versions.version import ModelVersion
from tests.support.engine import ScriptedEngine
from tests.support.service import Serve, Service
from tests.support.versions import make_manifest

LONG = 20_000
FIELDS = {"query", "rewrites", "status", "source", "model_version", "request_id"}


async def test_a_first_request_is_answered_by_the_engine(service: Service) -> None:
    answer = await service.rewrite("  Steele   STAKE ")
    RewriteResponse.model_validate(answer)
    assert answer.keys() == FIELDS
    assert answer | {"request_id": ""} == {
        "query": "steele stake",
        "rewrites": [
            {"text": "steel stake", "relevance": 0.98},
            {"text": "metal stake", "relevance": 0.91},
        ],
        "status": "ok",
        "source": "engine",
        "model_version": "test-1",
        "request_id": "",
    }
    assert service.engine.generated == ["steele stake"]


async def test_a_second_request_is_answered_from_memory_byte_for_byte(service: Service) -> None:
    first = await service.client.post("/rewrite", json={"query": "steele stake"})
    second = await service.client.post("/rewrite", json={"query": "STEELE stake"})
    assert second.json()["source"] == "memory"
    assert first.headers["cache-status"] == "requery; fwd=miss"
    assert second.headers["cache-status"] == "requery; hit; detail=memory"
    assert _rewrites(first.content) == _rewrites(second.content)
    assert len(service.engine.generated) == 1


async def test_callers_with_other_limits_share_one_generation(service: Service) -> None:
    await service.rewrite("steele stake")
    one = await service.rewrite("steele stake", max_rewrites=1)
    strict = await service.rewrite("steele stake", min_relevance=0.95)
    nothing = await service.rewrite("steele stake", min_relevance=1)
    assert [r["text"] for r in one["rewrites"]] == ["steel stake"]
    assert [r["text"] for r in strict["rewrites"]] == ["steel stake"]
    assert (nothing["rewrites"], nothing["status"], nothing["source"]) == ([], "none", "memory")
    assert len(service.engine.generated) == 1


async def test_explain_shows_rejected_candidates_and_stages(serve: Serve) -> None:
    script = [("steel stake", 0.9), ("steele stakes", 0.99), ("wood", 0.1), ("cut", None)]
    service = await serve(ScriptedEngine({"steele stake": script}))
    answer = await service.rewrite("steele stake", explain=True)
    RewriteResponse.model_validate(answer)
    assert answer["rejected"] == [
        {"text": "steele stakes", "relevance": 0.99, "reason": "echo"},
        {"text": "wood", "relevance": 0.1, "reason": "irrelevant"},
        {"text": "cut", "relevance": None, "reason": "unfinished"},
    ]
    assert set(answer["stages_ms"]) == {"prepare", "cache", "generate", "filter"}


async def test_explain_shows_a_correction_once_with_its_votes(serve: Serve) -> None:
    said: list[tuple[str, float | None]] = [("steel stake", 0.9), ("steel post", 0.8)]
    service = await serve(
        ScriptedEngine({"steel stake": said * 4}, tag=lambda _query, _rewrite: 0.93),
        wrap=lambda engine: CorrectedEngine(engine, Corrector({"steel": 9, "stake": 9})),
    )
    for source in ("engine", "memory"):
        answer = await service.rewrite("steeel stake", explain=True)
        RewriteResponse.model_validate(answer)
        assert answer["source"] == source
        assert {one["text"]: one.get("votes") for one in answer["rewrites"]} == {
            "steel stake": VOTES + 4, "steel post": None,
        }  # fmt: skip
        assert [one["text"] for one in answer["rejected"]] == ["steel post"] * 3
    plain = await service.rewrite("steeel stake")
    assert {"text": "steel stake", "relevance": 0.93} in plain["rewrites"]
    name = "requery_candidates_total"
    assert await service.metric(name, verdict="accepted") == 2
    assert await service.metric(name, verdict="duplicate") == 3


async def test_a_leader_that_leaves_does_not_cancel_a_follower(serve: Serve) -> None:
    engine = ScriptedEngine(held=True)
    service = await serve(engine)
    leader = asyncio.create_task(service.rewrite("steele stake", deadline_ms=LONG))
    await engine.reached_hold.wait()
    follower = asyncio.create_task(service.rewrite("steele stake", deadline_ms=LONG))

    async def both_wait() -> bool:  # ... and the scrape itself
        return await service.metric("requery_requests_in_flight") == 3

    await service.until(both_wait)
    leader.cancel()
    await asyncio.gather(leader, return_exceptions=True)
    engine.release()
    answer = await follower
    assert (answer["status"], answer["source"]) == ("ok", "coalesced")


async def test_a_deadline_gives_what_is_ready_and_fills_the_cache_later(serve: Serve) -> None:
    engine = ScriptedEngine(held=True, held_from=1)
    service = await serve(engine)
    early = await service.rewrite("steele stake", deadline_ms=50)
    assert (early["status"], early["source"]) == ("partial", "engine")
    assert [r["text"] for r in early["rewrites"]] == ["steel stake"]
    engine.release()
    await service.idle()
    late = await service.rewrite("steele stake")
    assert (late["status"], late["source"]) == ("ok", "memory")
    assert len(late["rewrites"]) == 2
    assert len(engine.generated) == 1


async def test_a_deadline_with_nothing_ready_is_a_timeout(serve: Serve) -> None:
    service = await serve(ScriptedEngine(held=True, held_from=0))
    answer = await service.rewrite("steele stake", deadline_ms=20)
    assert (answer["status"], answer["source"], answer["rewrites"]) == ("timeout", "none", [])


async def test_the_header_and_the_server_can_shorten_the_deadline(serve: Serve) -> None:
    service = await serve(ScriptedEngine(held=True, held_from=0), max_deadline_ms=30)
    assert (await service.rewrite("a stake", deadline_ms=LONG))["status"] == "timeout"
    response = await service.client.post(
        "/rewrite",
        json={"query": "b stake", "deadline_ms": LONG},
        headers={"x-request-deadline-ms": "-5"},
    )
    assert response.json()["status"] == "timeout"


async def test_a_deadline_that_has_passed_is_still_answered_from_memory(service: Service) -> None:
    await service.rewrite("steele stake")
    response = await service.client.post(
        "/rewrite", json={"query": "steele stake"}, headers={"x-request-deadline-ms": "0"}
    )
    assert response.json()["source"] == "memory"


async def test_an_engine_that_is_loading_gives_a_fallback(serve: Serve) -> None:
    engine = ScriptedEngine()
    engine.may_start.clear()
    service = await serve(engine, ready=False)
    assert (await service.client.get("/livez")).status_code == 200
    not_ready = await service.client.get("/readyz")
    assert not_ready.status_code == 503
    assert not_ready.json()["detail"] == "version test-1 is loading"
    assert not_ready.headers["retry-after"] == "1"
    answer = await service.rewrite("steele stake")
    assert (answer["status"], answer["source"], answer["rewrites"]) == ("fallback", "none", [])
    engine.may_start.set()
    await service.until_ready()
    # The fallback was not kept.
    assert (await service.rewrite("steele stake"))["source"] == "engine"


@pytest.mark.parametrize("fault", [EngineUnavailable("died"), ZeroDivisionError("a bug")])
async def test_an_engine_that_fails_gives_a_fallback(serve: Serve, fault: Exception) -> None:
    service = await serve(ScriptedEngine(fault=fault))
    answer = await service.rewrite("steele stake")
    assert (answer["status"], answer["source"]) == ("fallback", "none")
    service.engine.fault = None
    assert (await service.rewrite("steele stake"))["source"] == "engine"


async def test_an_engine_that_dies_half_way_leaves_a_partial_answer(serve: Serve) -> None:
    service = await serve(ScriptedEngine(fault=EngineUnavailable("died"), fault_at=1))
    answer = await service.rewrite("steele stake")
    assert (answer["status"], len(answer["rewrites"])) == ("partial", 1)


async def test_a_dead_engine_is_not_ready_and_memory_still_answers(service: Service) -> None:
    await service.rewrite("steele stake")
    service.engine.alive = False
    assert (await service.client.get("/readyz")).status_code == 503
    assert await service.metric("requery_engine_up", version="test-1") == 0
    assert (await service.rewrite("steele stake"))["source"] == "memory"
    assert (await service.rewrite("a hose"))["status"] == "fallback"


async def test_a_query_with_too_many_tokens_is_refused(serve: Serve) -> None:
    service = await serve(ScriptedEngine(fault=QueryTooLong("300 tokens, at most 200")))
    response = await service.client.post("/rewrite", json={"query": "steele stake"})
    assert response.status_code == 422
    assert response.json()["type"] == "urn:requery:problem:query-too-long"


async def test_versions_are_pinned_unknown_or_not_loaded(serve: Serve) -> None:
    service = await serve(more_versions=(ModelVersion(make_manifest("other-2")),))
    pinned = await service.rewrite("steele stake", model_version="test-1")
    assert pinned["model_version"] == "test-1"
    for name, code, kind in (
        ("other-2", 409, "version-not-loaded"),
        ("nobody", 404, "unknown-version"),
        ("../etc\n", 404, "unknown-version"),
    ):
        response = await service.client.post(
            "/rewrite", json={"query": "steele stake", "model_version": name}
        )
        assert response.status_code == code
        assert response.json()["type"] == f"urn:requery:problem:{kind}"
        assert response.json()["detail"].isprintable()
    listed = (await service.client.get("/versions")).json()
    VersionsResponse.model_validate(listed)
    assert listed["default"] == "test-1"
    assert [(v["name"], v["state"]) for v in listed["versions"]] == [
        ("other-2", "available"),
        ("test-1", "ready"),
    ]


async def test_relevance_tags_pairs_in_order_in_normal_form(serve: Serve) -> None:
    engine = ScriptedEngine(tag=lambda _q, r: len(r) / 100)
    service = await serve(engine)
    response = await service.client.post(
        "/relevance",
        json={"pairs": [{"query": "A  b", "rewrite": "C"}, {"query": "d", "rewrite": "E é"}]},
    )
    RelevanceResponse.model_validate(response.json())
    assert response.json()["relevance"] == [0.01, 0.03]
    assert engine.tagged == [("a b", "c"), ("d", "e é")]


async def test_relevance_names_every_bad_text(service: Service) -> None:
    response = await service.client.post(
        "/relevance",
        json={"pairs": [{"query": "a", "rewrite": " "}, {"query": "x" * 257, "rewrite": "b"}]},
    )
    assert response.status_code == 422
    assert [e["field"] for e in response.json()["errors"]] == ["pairs.0.rewrite", "pairs.1.query"]


async def test_relevance_refuses_too_many_pairs(service: Service) -> None:
    pairs = [{"query": "a", "rewrite": "b"}] * 257
    response = await service.client.post("/relevance", json={"pairs": pairs})
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "pairs"


async def test_relevance_without_an_engine_or_time(serve: Serve) -> None:
    body = {"pairs": [{"query": "a", "rewrite": "b"}], "deadline_ms": 20}
    dead = await serve(ScriptedEngine(fault=EngineUnavailable("down")))
    response = await dead.client.post("/relevance", json=body)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    slow = await serve(ScriptedEngine(held=True))
    response = await slow.client.post("/relevance", json=body)
    assert (response.status_code, response.json()["status"]) == (504, 504)


async def test_a_version_that_cannot_load_is_reported(serve: Serve) -> None:
    failures: asyncio.Queue[Exception] = asyncio.Queue()
    service = await serve(
        ScriptedEngine(start_fault=EngineUnavailable("no memory")),
        ready=False,
        on_load_failure=failures.put_nowait,
    )
    assert str(await failures.get()) == "no memory"
    assert service.engine.closed
    assert (await service.client.get("/readyz")).json()["detail"] == (
        "version test-1 is failed: no memory"
    )
    assert (await service.rewrite("steele stake"))["status"] == "fallback"


def _rewrites(content: bytes) -> bytes:
    return content[content.index(b'"rewrites"') : content.index(b'"status"')]
