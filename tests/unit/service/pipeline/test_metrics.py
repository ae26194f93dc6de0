from __future__ import annotations

from itertools import pairwise

from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families

from service.filtering.candidates import Verdict
from service.telemetry.fast_metrics import LATENCY_BUCKETS_S
from tests.support.engine import ScriptedEngine
from tests.support.service import Serve, Service

PROMISED = {
    "requery_request_duration_seconds": {"version", "source", "status"},
    "requery_stage_duration_seconds": {"stage"},
    "requery_http_responses": {"route", "code"},
    "requery_candidates": {"version", "verdict"},
    "requery_relevance": {"version"},
    "requery_rewrites_per_answer": {"version"},
    "requery_tokens": {"version", "kind"},
    "requery_engine_up": {"version"},
    "requery_cache_operations": {"tier", "op", "result"},
    "requery_cache_memory_bytes": set(),
    "requery_cache_memory_entries": set(),
    "requery_cache_redis_bytes": set(),
    "requery_cache_redis_keys": set(),
    "requery_cache_hit_ratio": {"tier"},
    "requery_generations_in_flight": set(),
    "requery_requests_in_flight": set(),
    "requery_build_info": {"release", "python"},
}


async def test_every_promised_metric_is_there_with_its_labels(service: Service) -> None:
    await service.rewrite("steele stake")
    response = await service.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    families = {f.name: f for f in text_string_to_metric_families(response.text)}
    assert all(name.startswith("requery_") for name in families)
    for name, labels in PROMISED.items():
        found = {frozenset(s.labels.keys() - {"le"}) for s in families[name].samples}
        assert found == {frozenset(labels)}, name
        assert families[name].documentation


def test_buckets_resolve_one_millisecond_to_five_seconds() -> None:
    assert (LATENCY_BUCKETS_S[0], LATENCY_BUCKETS_S[-1]) == (0.001, 5.0)
    steps = pairwise(LATENCY_BUCKETS_S)
    assert all(high / low <= 2 for low, high in steps)


async def test_a_generation_and_its_answers_are_counted(serve: Serve) -> None:
    script = [("steel stake", 0.9), ("Steele stake", 0.99), ("wood", 0.1), ("cut", None)]
    service = await serve(ScriptedEngine({"steele stake": script}))
    for _ in range(3):
        await service.rewrite("steele stake")
    ok = {"version": "test-1", "status": "ok"}
    name = "requery_request_duration_seconds_count"
    assert await service.metric(name, source="engine", **ok) == 1
    assert await service.metric(name, source="memory", **ok) == 2
    for verdict in Verdict:
        expected = float(verdict.value in ("accepted", "echo", "irrelevant", "unfinished"))
        assert (
            await service.metric("requery_candidates_total", verdict=verdict.value) == expected
        ), verdict
    assert await service.metric("requery_relevance_count") == 3
    assert await service.metric("requery_rewrites_per_answer_sum") == 3
    assert await service.metric("requery_tokens_total", kind="generated") == 2 + 2 + 1 + 1 + 4
    assert await service.metric("requery_tokens_total", kind="prompt") == 12
    operations = "requery_cache_operations_total"
    assert await service.metric(operations, tier="memory", op="get", result="hit") == 2
    assert await service.metric(operations, tier="memory", op="get", result="miss") == 1
    assert await service.metric(operations, tier="memory", op="put", result="ok") == 1
    assert await service.metric("requery_cache_memory_entries") == 1
    assert await service.metric("requery_engine_up", version="test-1") == 1
    assert await service.metric("requery_stage_duration_seconds_count", stage="cache") == 3


async def test_a_generation_nobody_waited_for_is_counted_too(serve: Serve) -> None:
    engine = ScriptedEngine(held=True)
    service = await serve(engine)
    await service.rewrite("steele stake", deadline_ms=10)
    assert await service.metric("requery_relevance_count") == 0
    assert await service.metric("requery_generations_in_flight") == 1
    engine.release()
    await service.idle()
    assert await service.metric("requery_relevance_count") == 2


async def test_nothing_a_caller_sends_becomes_a_label(service: Service) -> None:
    marker = "zzmarkerzz"
    await service.client.post("/rewrite", json={"query": marker, "model_version": marker})
    await service.client.post("/rewrite", json={"query": marker, marker: 1})
    await service.client.get(f"/{marker}")
    await service.client.request("POST", "/rewrite", headers={"x-request-id": marker})
    await service.rewrite(marker, unit_id=marker)
    text = (await service.client.get("/metrics")).text
    assert marker not in text
    assert await service.metric("requery_http_responses_total", route="unmatched", code="404") == 1
    assert await service.metric("requery_http_responses_total", route="/rewrite", code="404") == 1


async def test_the_global_registry_is_left_alone(service: Service) -> None:
    await service.rewrite("steele stake")
    assert not [f.name for f in REGISTRY.collect() if "requery" in f.name]


async def test_two_services_in_one_process_count_apart(serve: Serve) -> None:
    one, other = await serve(), await serve()
    await one.rewrite("steele stake")
    assert await one.metric("requery_rewrites_per_answer_count") == 1
    assert await other.metric("requery_rewrites_per_answer_count") == 0
