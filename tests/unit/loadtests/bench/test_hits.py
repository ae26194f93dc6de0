from __future__ import annotations

import httpx
import pytest

from loadtests.bench import hit_servers, hits
from loadtests.bench.bare_route import create_app
from loadtests.bench.hit_servers import BARE, LITELLM, MEMORY, REDIS
from loadtests.bench.hits import Driven, read
from loadtests.processes import ServerFailed
from service.api.schemas import RewriteResponse


def driven(per_s: float, *, cpu: float = 0.97, failures: int = 0) -> Driven:
    return Driven(per_s, failures, {"p50": 1.0, "p99": 2.0}, cpu)


async def test_the_bare_route_answers_by_the_services_contract() -> None:
    transport = httpx.ASGITransport(app=create_app())
    async with httpx.AsyncClient(transport=transport, base_url="http://bench") as client:
        answer = await client.post("/rewrite", json={"query": "steele stake"})
        assert answer.status_code == 200
        assert RewriteResponse.model_validate(answer.json()).query == "steele stake"
        assert (await client.post("/rewrite", json={"query": 1})).status_code == 422


async def test_the_model_provider_counts_how_often_it_was_asked() -> None:
    transport = httpx.ASGITransport(app=create_app())
    async with httpx.AsyncClient(transport=transport, base_url="http://bench") as client:
        body = hit_servers.chat("steele stake")
        answer = await client.post("/fixed/chat/completions", json=body)
        assert "steel stake" in answer.json()["choices"][0]["message"]["content"]
        assert (await client.get("/fixed/asked")).json() == {"asked": 1}


def test_a_throughput_is_a_limit_only_of_a_busy_server_that_answers() -> None:
    assert driven(100.0).trouble == ""
    assert "0.40 of a core" in driven(100.0, cpu=0.4).trouble
    assert "3 requests failed" in driven(100.0, failures=3).trouble


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"unable to connect\n", "unable to connect"),
        (b'{"requests":0,"seconds":1,"failures":7,"latency_ms":{"p99":0}}', "7 failed"),
    ],
)
def test_a_generator_that_did_nothing_is_told(said: bytes, told: str) -> None:
    with pytest.raises(ServerFailed, match=told):
        read(said)


def test_ratios_are_to_the_bare_route_and_litellms_to_our_redis() -> None:
    rounds = [
        {
            BARE: driven(1000.0),
            MEMORY: driven(600.0),
            REDIS: driven(400.0, cpu=0.5),
            LITELLM: driven(40.0),
        }
    ]
    latency = {
        name: {"latency_ms": {"p99": p99}, "failures": 0}
        for name, p99 in (("generator", 0.5), (BARE, 1.0), (MEMORY, 1.75))
    }
    rows, ratios = hits._rows(rounds, [latency], {"other": "no room"}, pinned=True)
    assert ratios["memory to bare route"]["median"] == 0.6
    assert ratios["LiteLLM, Redis to Redis"]["median"] == 0.1
    assert ratios["added_p99_ms"]["median"] == 0.75
    notes = {row.what: row.note for row in rows}
    assert notes["Requery from memory, one process"] == ""
    assert notes["Requery from Redis, one process"].startswith("INVALID")
    assert notes["other"] == "no room"


@pytest.mark.parametrize(
    ("alone", "failures", "valid"), [(0.5, 0, True), (40.0, 0, False), (0.5, 1, False)]
)
def test_a_generator_that_is_behind_measures_itself(
    alone: float, failures: int, valid: bool
) -> None:
    p99 = {"generator": alone, BARE: 1.0, MEMORY: 2.0}
    latency = {n: {"latency_ms": {"p99": ms}, "failures": failures} for n, ms in p99.items()}
    rows, _ = hits._rows([{BARE: driven(1000.0)}], [latency], {}, pinned=False)
    assert rows[-1].note.startswith("INVALID") is not valid
    assert "shared one core" in rows[0].note
