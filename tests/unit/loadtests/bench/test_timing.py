from __future__ import annotations

import pytest

from loadtests.bench.timing import TimedTransport, breakdown, own_share, server_timing
from tests.unit.loadtests.outcomes import request
from tests.unit.loadtests.test_client import http, server

HEADER = "prepare;dur=0.50, cache;dur=1.00, generate;dur=96.00, filter;dur=0.50, total;dur=100.00"


def test_stages_are_read_in_seconds() -> None:
    assert server_timing(HEADER) == pytest.approx(
        {"prepare": 0.0005, "cache": 0.001, "generate": 0.096, "filter": 0.0005, "total": 0.1}
    )
    assert server_timing("") == {}


def test_the_services_own_share_is_the_total_less_generation() -> None:
    answers = [server_timing(HEADER), {"total": 0.2, "generate": 0.19}, {"total": 0.001}]
    share = own_share(answers)
    assert share is not None
    assert share["own_ms"]["count"] == 2
    assert share["own_ms"]["p50"] == pytest.approx(4.0)
    assert share["own_ms"]["max"] == pytest.approx(10.0)
    assert share["share_of_total"] == pytest.approx(0.04)
    assert own_share([{"total": 0.001}]) is None


def test_a_stage_that_an_answer_lacks_took_no_time_there() -> None:
    assert breakdown([{"total": 0.1, "admit": 0.01}, {"total": 0.3}]) == {
        "total": 100.0,
        "admit": 0.0,
    }


@pytest.mark.parametrize(
    ("said", "source"),
    [("requery; hit; detail=memory", "memory"), ("requery; fwd=miss", "miss"), ("", "miss")],
)
async def test_stages_are_kept_by_source(said: str, source: str) -> None:
    headers = f"server-timing: {HEADER}\r\ncache-status: {said}\r\n".encode()
    async with (
        server(http(200, b'{"status":"ok"}', headers)) as url,
        TimedTransport(url) as transport,
    ):
        reply = await transport.send(request())
    assert reply.status == "ok"
    assert transport.stages == {source: [server_timing(HEADER)]}


async def test_refusals_have_no_stages() -> None:
    headers = f"server-timing: {HEADER}\r\n".encode()
    async with server(http(503, b"{}", headers)) as url, TimedTransport(url) as transport:
        await transport.send(request())
    assert transport.stages == {}
