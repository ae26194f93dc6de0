"""One event is one line of ASCII JSON, whatever is in it."""

from __future__ import annotations

import json
import logging
import re
from datetime import UTC, datetime

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from service.telemetry.logging import batched_writes, configure_logging, query_fields, render
from tests.support.service import Serve
from tests.support.waiting import turns

NASTY = 'a\nb\r\n\x00\x0b\x0c\x1c\x85\u2028\u2029\ud800 {"event": "forged"}'


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the test's own lines: its client logs each request, too."""
    monkeypatch.setattr(logging.getLogger("httpx"), "disabled", True)


@given(st.dictionaries(st.text(), st.text() | st.binary() | st.floats() | st.none()))
def test_any_event_is_one_line(event: dict[str, object]) -> None:
    line = render(None, "info", dict(event))
    assert line.isascii()
    assert line.splitlines() == [line]
    assert json.loads(line).keys() == event.keys()


def test_lines_of_every_origin_are_json(restored: None, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info")
    structlog.get_logger().info("from structlog", query=NASTY)
    logging.getLogger("elsewhere").warning("from %s\nstdlib", NASTY)
    try:
        int(NASTY)
    except ValueError:
        structlog.get_logger().exception("with trace")
        logging.getLogger("elsewhere").exception("with trace, stdlib")
    structlog.get_logger().debug("too low")
    lines = capsys.readouterr().out.splitlines()
    events = [json.loads(line) for line in lines]
    assert len(events) == 4
    assert events[0]["query"] == NASTY
    assert events[1]["logger"] == "elsewhere"
    assert all({"event", "level", "timestamp"} <= e.keys() for e in events)
    assert all("ValueError" in e["exception"] for e in events[2:])


async def test_lines_that_wait_for_the_end_of_a_turn_keep_their_places(
    restored: None, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("info")
    log = structlog.get_logger()

    def written() -> list[str]:
        return [json.loads(line)["event"] for line in capsys.readouterr().out.splitlines()]

    with batched_writes():
        log.info("one")
        log.info("two")
        assert written() == []
        await turns(2)
        assert written() == ["one", "two"]
        log.info("three")
        log.warning("four")
        log.info("five")
        logging.getLogger("elsewhere").warning("six")
        assert written() == ["three", "four", "five", "six"]
        log.info("seven")
    assert written() == ["seven"]
    log.info("eight")
    assert written() == ["eight"]


def test_times_are_utc_to_the_microsecond(
    restored: None, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("info")
    before = datetime.now(UTC)
    for _ in range(3):
        structlog.get_logger().info("now")
    after = datetime.now(UTC)
    times = [json.loads(line)["timestamp"] for line in capsys.readouterr().out.splitlines()]
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", one) for one in times)
    parsed = [datetime.fromisoformat(one) for one in times]
    assert [before, *parsed, after] == sorted([before, *parsed, after])


async def test_a_request_is_one_line_with_its_ids(
    serve: Serve, restored: None, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("info")
    service = await serve(log_queries="plain")
    capsys.readouterr()
    trace, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    await service.client.post(
        "/rewrite",
        json={"query": "steel\u2028\n{stake}"},
        headers={"x-request-id": "search-17", "traceparent": f"00-{trace}-{parent}-01"},
    )
    (line,) = capsys.readouterr().out.splitlines()
    event = json.loads(line)
    expected = {
        "event": "request", "method": "POST", "route": "/rewrite", "code": 200,
        "request_id": "search-17", "trace_id": trace, "parent_id": parent, "version": "test-1",
        "source": "engine", "outcome": "ok", "query": "steel {stake}",
    }  # fmt: skip
    assert event.items() >= expected.items()


async def test_a_refusal_is_logged_with_its_problem_and_without_the_query(
    serve: Serve, restored: None, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("info")
    service = await serve(log_queries="plain")
    capsys.readouterr()
    await service.client.post("/rewrite", json={"query": "secret", "model_version": "nobody"})
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["problem"] == "unknown-version"
    assert "secret" not in line


async def test_probes_are_not_logged_and_logging_can_be_off(
    serve: Serve, restored: None, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("info")
    service = await serve(log_requests=False)
    capsys.readouterr()
    await service.rewrite("steele stake")
    talkative = await serve()
    capsys.readouterr()
    for path in ("/livez", "/readyz", "/metrics"):
        assert (await talkative.client.get(path)).status_code == 200
    talkative.engine.alive = False
    assert (await talkative.client.get("/readyz")).status_code == 503
    assert capsys.readouterr().out == ""


def test_queries_appear_only_as_configured() -> None:
    assert query_fields("off")("steele stake") == {}
    assert query_fields("plain")("steele stake") == {"query": "steele stake"}
    hashed, salted = query_fields("hash"), query_fields("hash", salt="s3cret")
    assert hashed("steele stake") == hashed("steele stake")
    assert hashed("steele stake") != hashed("steel stake")
    assert hashed("steele stake") != salted("steele stake")
    assert "steele" not in str(hashed("steele stake"))
