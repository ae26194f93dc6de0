"""What the edge reads of headers, whatever bytes they hold."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message

from service.api.body import DEADLINE_HEADER, DeadlinePolicy, read_json
from service.api.conditions import entity_tag, expected_revision
from service.api.middleware import BodyLimitMiddleware
from service.api.schemas import RewriteRequest
from service.cache.purges import _parse as parse_purges
from service.errors import PayloadTooLarge, RequeryError
from service.telemetry.request_context import make_context
from service.versions.desired import parse as parse_desired
from tests.contract import corpus
from tests.fuzz.profile import fuzzed
from tests.fuzz.strategies import json_values

_T = TypeVar("_T")

values = (
    st.sampled_from([*corpus.HEADER_VALUES.values()])
    | st.binary(max_size=60)
    | st.integers().map(lambda n: str(n).encode())
    | st.text("0123456789-+. _eE\u00b2\u00a0\t", max_size=20).map(lambda t: t.encode("latin-1"))
)
names = st.sampled_from([*corpus.HEADERS])


def _request(*headers: tuple[bytes, bytes], body: bytes = b"") -> Request:
    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {"type": "http", "method": "POST", "path": "/", "headers": list(headers)}
    return Request(scope, receive)


def _or_error(call: Callable[[], _T]) -> _T | RequeryError:
    try:
        return call()
    except RequeryError as error:
        return error


@fuzzed
@given(values, st.none() | st.integers(1, 600_000), st.integers(1, 60_000), st.integers(1, 60_000))
def test_a_deadline_never_goes_beyond_the_servers(
    value: bytes, body_ms: int | None, default_ms: int, cap_ms: int
) -> None:
    started = time.monotonic()
    request = _request((DEADLINE_HEADER.encode(), value))
    policy = DeadlinePolicy(default_ms, cap_ms)
    found = _or_error(lambda: policy.deadline(request, body_ms, started=started))
    if isinstance(found, RequeryError):
        assert found.status == 422
        assert not re.fullmatch(rb"-?[0-9]{1,12}", value)
        return
    asked_ms = max(0, int(value))
    expected = min(cap_ms, asked_ms, body_ms if body_ms is not None else asked_ms)
    assert abs(found.at - started - expected / 1000) < 1e-6


@fuzzed
@given(values, st.booleans())
def test_a_condition_is_read_or_refused(value: bytes, required: bool) -> None:
    request = _request((b"if-match", value))
    revision = _or_error(lambda: expected_revision(request, required=required))
    if isinstance(revision, RequeryError):
        assert revision.status == 422
    elif revision is None:
        assert value.decode("latin-1").strip() == "*"
    else:
        assert int(value.strip(b'" \t\xa0\r\n\x0b\x0c\x1c\x1d\x1e\x1f\x85')) == revision
        assert expected_revision(_request((b"if-match", entity_tag(revision).encode()))) == revision


@fuzzed
@given(st.lists(st.tuples(names, values), max_size=8))
def test_ids_that_are_passed_on_are_harmless(headers: list[tuple[bytes, bytes]]) -> None:
    context = make_context(headers)
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._:@+/=-]{0,127}", context.request_id)
    assert re.fullmatch(r"[0-9a-f]{32}", context.trace_id or "0" * 32)
    assert re.fullmatch(r"[0-9a-f]{16}", context.parent_id or "0" * 16)


@fuzzed
@given(
    values, st.binary(max_size=80) | json_values.map(lambda v: repr(v).encode("utf-8", "replace"))
)
async def test_any_content_type_and_body_is_read_or_refused(value: bytes, body: bytes) -> None:
    for declared, possible in ((value, {400, 415, 422}), (b"application/json", {400, 422})):
        status = 422
        try:
            await read_json(_request((b"content-type", declared), body=body), RewriteRequest)
        except RequeryError as error:
            status = error.status
        assert status in possible


@fuzzed
@given(values, st.lists(st.integers(0, 60), max_size=6))
async def test_no_body_is_longer_than_the_limit_whatever_is_declared(
    declared: bytes, chunks: list[int]
) -> None:
    read: list[bytes] = []

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        read.extend([(await receive())["body"] for _ in chunks])

    waiting = [b"x" * length for length in chunks]

    async def receive() -> Message:
        return {"type": "http.request", "body": waiting.pop(0), "more_body": True}

    async def send(_message: Message) -> None:
        raise AssertionError("nothing is answered here")

    scope = {"type": "http", "method": "PUT", "headers": [(b"content-length", declared)]}
    try:
        await BodyLimitMiddleware(app, max_bytes=100)(scope, receive, send)
    except PayloadTooLarge:
        return
    assert sum(map(len, read)) <= 100
    assert not declared.isdigit() or int(declared) <= 100 or not chunks


@fuzzed
@given(json_values | st.fixed_dictionaries({"versions": json_values, "purges": json_values}))
def test_what_others_store_is_taken_or_refused(body: Any) -> None:
    """Desired versions and purges; routing and overrides have tests of their own."""
    if not isinstance(body, dict):
        return
    for parse in (parse_desired, parse_purges):
        try:
            parse(body)
        except ValueError:
            continue
