from __future__ import annotations

import asyncio
import os
from pathlib import Path

import httpx
import orjson
import pytest

from loadtests.bench import hits, litellm
from loadtests.bench.bare_route import create_app
from loadtests.bench.drivers import LUA, Driven, Driver, read
from loadtests.bench.peer import PeerFailed
from loadtests.bench.pump import Pump, request
from loadtests.client import NotThisMachine
from service.api.schemas import RewriteResponse
from tests.unit.loadtests.test_client import http


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
        body = orjson.loads(litellm.body("steele stake"))
        answer = await client.post("/fixed/chat/completions", json=body)
        assert "steel stake" in answer.json()["choices"][0]["message"]["content"]
        assert (await client.get("/fixed/asked")).json() == {"asked": 1}


def test_a_throughput_is_a_limit_only_of_a_busy_server_that_answers() -> None:
    assert driven(100.0).trouble == ""
    assert "0.40 of a core" in driven(100.0, cpu=0.4).trouble
    assert "3 requests failed" in driven(100.0, failures=3).trouble
    assert driven(100.0, cpu=0.4).content()["invalid"]


def test_reports_of_generators_are_read_from_their_last_line() -> None:
    said = b'Running 1s test\n{"requests":5,"seconds":1.0,"failures":0,"latency_ms":{"p99":1}}\n'
    assert read(said)["requests"] == 5


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (b"unable to connect\n", "unable to connect"),
        (b'{"requests":0,"seconds":1,"failures":7,"latency_ms":{"p99":0}}', "7 failed"),
    ],
)
def test_a_generator_that_did_nothing_is_told(said: bytes, told: str) -> None:
    with pytest.raises(PeerFailed, match=told):
        read(said)


async def serve(answer: bytes) -> asyncio.Server:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                await reader.readexactly(length)
                writer.write(answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    return await asyncio.start_server(handle, "127.0.0.1", 0)


@pytest.mark.parametrize(("code", "good"), [(200, True), (503, False)])
async def test_the_pump_keeps_its_connections_busy(code: int, good: bool) -> None:
    server = await serve(http(code, b"{}"))
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/rewrite"
    pump = Pump(url, [b'{"query":"a"}', b'{"query":"b"}'])
    done = await pump.run(3, 0.5)
    server.close()
    assert (done["requests"] != 0) is good
    assert (done["failures"] == 0) is good


def test_the_pump_stays_on_this_machine() -> None:
    with pytest.raises(NotThisMachine):
        Pump("http://example.com/rewrite", [b"{}"])


def test_a_request_is_whole() -> None:
    assert request("/rewrite", "here:1", b"{}").endswith(b"content-length: 2\r\n\r\n{}")


@pytest.mark.integration
async def test_both_generators_drive_a_server(tmp_path: Path) -> None:
    server = await serve(http(200, b"{}"))
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/rewrite"
    bodies = tmp_path / "bodies.jsonl"
    bodies.write_bytes(b'{"query":"a"}\n{"query":"b"}\n')
    pid = os.getpid()
    ours = Driver(tmp_path, 4, None, wrk="")
    assert "pump" in ours.name
    found = [await ours.drive(pid, url, bodies, 1.0)]
    default = Driver(tmp_path, 4, None)
    if default.name == "wrk":
        found.append(await default.drive(pid, url, bodies, 1.0))
        assert (tmp_path / "bodies.lua").read_text() == LUA
    server.close()
    for one in found:
        assert one.per_s > 0
        assert one.failures == 0
        assert one.latency_ms["p99"] > 0


def test_ratios_are_to_the_bare_route_and_litellms_to_our_redis() -> None:
    rounds = [
        {
            hits.BARE: driven(1000.0),
            hits.MEMORY: driven(600.0),
            hits.REDIS: driven(400.0, cpu=0.5),
            hits.LITELLM: driven(40.0),
        }
    ]
    latency = {
        name: {"latency_ms": {"p99": p99}, "failures": 0}
        for name, p99 in (("generator", 0.5), (hits.BARE, 1.0), (hits.MEMORY, 1.75))
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
    p99 = {"generator": alone, hits.BARE: 1.0, hits.MEMORY: 2.0}
    latency = {n: {"latency_ms": {"p99": ms}, "failures": failures} for n, ms in p99.items()}
    rows, _ = hits._rows([{hits.BARE: driven(1000.0)}], [latency], {}, pinned=True)
    assert rows[-1].note.startswith("INVALID") is not valid


def test_without_a_core_of_its_own_no_throughput_is_valid() -> None:
    rows, _ = hits._rows([{hits.BARE: driven(1000.0)}], [], {}, pinned=False)
    assert "shared one core" in rows[0].note


def test_litellm_is_set_up_to_cache_in_redis() -> None:
    found = litellm.config("http://127.0.0.1:1/fixed", 6390)
    assert found["litellm_settings"]["cache_params"]["port"] == 6390
    assert found["model_list"][0]["model_name"] == orjson.loads(litellm.body("a"))["model"]
