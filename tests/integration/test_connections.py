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


def test_headers_that_are_too_long(process: ScriptedProcess) -> None:
    for request in (get("/livez", f"x: {'y' * 5000}"), get("/" + "x" * 5000)[:-100]):
        with Caller(process.port) as caller:
            assert told(caller.ask(request), 431)
            assert caller.hung_up()


def test_headers_without_an_end_are_not_kept(process: ScriptedProcess) -> None:
    """They are refused for their length, long before their time is over."""
    with Caller(process.port) as caller:
        caller.send(get("/livez")[:-2] + b"x: " + b"y" * 100_000)
        assert told(caller.read(), 431)
        # Whoever goes on is dropped, and hung up on in the end.
        with pytest.raises(ConnectionError):
            _send_for_ever(caller)


def test_too_many_connections_are_told_and_health_checks_get_through(
    process: ScriptedProcess,
) -> None:
    # Used, so that they are idle and not slow.
    holders = [Caller(process.port) for _ in range(PLACES)]
    for holder in holders:
        assert holder.ask(QUERY).status == 200
    answer = answered(process, QUERY)
    assert told(answer, 503)
    assert answer.json()["type"] == "urn:requery:problem:too-many-connections"
    assert answer.headers["retry-after"] == "1"
    for path in ("/livez", "/readyz"):
        assert answered(process, get(path)).status == 200
    assert all(holder.ask(QUERY).status == 200 for holder in holders)
    holders[0].close()
    wait_until(lambda: answered(process, QUERY).status == 200)
    for holder in holders:
        holder.close()


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


def _send_for_ever(caller: Caller) -> None:
    while True:
        caller.send(b"y" * 100_000)
