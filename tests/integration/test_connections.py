"""Callers who take more than their share, on the real server process."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.support.raw_http import Caller, RawResponse, get, rewrite_request
from tests.support.scripted_process import ScriptedProcess
from tests.support.waiting import wait_until

pytestmark = pytest.mark.integration

PLACES = 20
QUERY = rewrite_request("a stake")


@pytest.fixture(scope="module")
def process() -> Iterator[ScriptedProcess]:
    with ScriptedProcess(
        max_connections=PLACES, max_header_bytes=4096, body_timeout_s=5
    ) as started:
        yield started


@pytest.fixture(autouse=True)
def nobody_else(process: ScriptedProcess) -> None:
    """No connection is left of the test before."""
    wait_until(lambda: connections(process) == 1)


def connections(process: ScriptedProcess) -> int:
    with Caller(process.port) as caller:
        for line in caller.ask(get("/metrics")).body.decode().splitlines():
            name, _, value = line.rpartition(" ")
            if name == "requery_http_connections":
                return int(float(value))
    raise AssertionError("no such metric")


def told(answer: RawResponse, status: int) -> bool:
    return (answer.status, answer.last, answer.headers["content-type"]) == (
        status, True, "application/problem+json"
    )  # fmt: skip


def test_slow_callers_hold_no_place_for_ever_and_others_are_served(
    process: ScriptedProcess,
) -> None:
    """Slowloris: headers that never end, bodies that never end, and silence."""
    kinds = (QUERY[:30], QUERY[:-3], b"")
    slow = [Caller(process.port) for _ in range(PLACES - 2)]
    for i, caller in enumerate(slow):
        caller.send(kinds[i % 3])
    with Caller(process.port) as other:
        assert other.ask(QUERY).status == 200
    for i, caller in enumerate(slow):
        if kinds[i % 3]:
            assert told(caller.read(), 408)
        assert caller.hung_up()
        caller.close()


def test_a_flood_of_connections_is_survived(process: ScriptedProcess) -> None:
    flood = [socket.create_connection(("127.0.0.1", process.port)) for _ in range(10 * PLACES)]
    wait_until(lambda: answered(process, QUERY).status == 200)
    for one in flood:
        one.close()
    assert process.running
    assert [line for line in process.events if line["level"] != "info"] == []


def answered(process: ScriptedProcess, request: bytes) -> RawResponse:
    """The answer to a request on a connection of its own.

    There is little time for one over the limit, and tests may be slow: it is tried again.
    """
    while True:
        try:
            with Caller(process.port) as caller:
                return caller.ask(request)
        except ConnectionError:
            assert process.running
