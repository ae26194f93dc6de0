"""Bad requests get a 4xx problem that names the field; tests/contract sends them by thousands."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator

import pytest

from service.api.schemas import Problem
from tests.support.service import Service

JSON = {"content-type": "application/json"}


async def test_spaces_around_do_not_count(service: Service) -> None:
    answer = await service.rewrite(" " * 1900 + "x" * 256 + " " * 1900)
    assert answer["query"] == "x" * 256


REFUSED: dict[str, tuple[bytes, int, str]] = {
    "empty": (b'{"query": ""}', 422, "query"),
    "blank": (b'{"query": " \\t\\n "}', 422, "query"),
    "nothing printable": (b'{"query": "\\u200b\\u0000\\u202e"}', 422, "query"),
    "257 characters": (json.dumps({"query": "x" * 257}).encode(), 422, "query"),
    "grows when normalised": (json.dumps({"query": "\ufdfa" * 20}).encode(), 422, "query"),
    "very long": (json.dumps({"query": "x" * 5000}).encode(), 422, "query"),
    "nothing but a half": (b'{"query": "\\ud800"}', 422, "query"),
    "half in UTF-8": (b'{"query": "a \xed\xa0\xbd"}', 400, ""),
    "half that is cut off": (b'{"query": "a \\ud83"}', 400, ""),
    "no body": (b"", 400, ""),
    "not json": (b"query=steele+stake", 400, ""),
    "latin-1": ('{"query": "caf\u00e9"}'.encode("latin-1"), 400, ""),
    "utf-16": ('{"query": "a"}'.encode("utf-16"), 400, ""),
    "cut off": (b'{"query": "steel', 400, ""),
    "trailing": (b'{"query": "a"} {"query": "b"}', 400, ""),
    "deep": (b'{"query": ' + b"[" * 20_000 + b"]" * 20_000 + b"}", 400, ""),
    "deep in an unknown field": (b'{"x":' + b'{"a":' * 9_000 + b"1" + b"}" * 9_001, 400, ""),
    "array": (b"[1]", 422, "body"),
    "null": (b"null", 422, "body"),
    "no query": (b"{}", 422, "query"),
    "number as query": (b'{"query": 5}', 422, "query"),
    "null as query": (b'{"query": null}', 422, "query"),
    "text as number": (b'{"query": "a", "max_rewrites": "3"}', 422, "max_rewrites"),
    "fraction of a rewrite": (b'{"query": "a", "max_rewrites": 2.5}', 422, "max_rewrites"),
    "far fraction": (b'{"query": "a", "deadline_ms": 1e300}', 422, "deadline_ms"),
    "zero rewrites": (b'{"query": "a", "max_rewrites": 0}', 422, "max_rewrites"),
    "huge int": (b'{"query": "a", "max_rewrites": ' + b"9" * 4000 + b"}", 422, "max_rewrites"),
    "huger int": (b'{"query": "a", "deadline_ms": ' + b"9" * 6000 + b"}", 400, ""),
    "bool as int": (b'{"query": "a", "deadline_ms": true}', 422, "deadline_ms"),
    "nan": (b'{"query": "a", "min_relevance": NaN}', 422, "min_relevance"),
    "infinity": (b'{"query": "a", "min_relevance": -Infinity}', 422, "min_relevance"),
    "overflow": (b'{"query": "a", "min_relevance": 1e999}', 422, "min_relevance"),
    "negative deadline": (b'{"query": "a", "deadline_ms": -1}', 422, "deadline_ms"),
    "unknown field": (b'{"query": "a", "max_rewrite": 3}', 422, "max_rewrite"),
    "unprintable field": (b'{"query": "a", "\\n\\u0000\\u202e": 3}', 422, "\\n\\x00\\u202e"),
    "long version": (
        b'{"query": "a", "model_version": "' + b"v" * 65 + b'"}', 422, "model_version",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("body", "code", "field"), REFUSED.values(), ids=REFUSED.keys())
async def test_bad_bodies_are_refused(service: Service, body: bytes, code: int, field: str) -> None:
    response = await service.client.post("/rewrite", content=body, headers=JSON)
    assert response.status_code == code, response.text
    assert response.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(response.content)
    assert problem.status == code
    assert problem.detail.isprintable()
    assert "Traceback" not in response.text
    assert [e.field for e in problem.errors or []] == ([field] if field else [])
    assert problem.request_id == response.headers["x-request-id"]
    assert service.engine.generated == []


@pytest.mark.parametrize(
    ("written", "read"),
    [
        pytest.param(r"phone \ud83d", "phone", id="at the end"),
        pytest.param(r"phone\uDE00case", "phone case", id="second half"),
        pytest.param(r"phone \udc00\ud800 case", "phone case", id="in the wrong order"),
        pytest.param(r"\ud83d\ud83d\ude00\ud83d phone", "phone", id="beside a pair"),
        pytest.param(r"caf\u00e9 \ud83d", "caf\u00e9", id="beside another escape"),
        pytest.param(r"c:\\ud83d \ud83d", r"c:\ud83d", id="not an escape"),
    ],
)
async def test_half_of_an_emoji_reads_as_a_space(service: Service, written: str, read: str) -> None:
    body = f'{{"query": "{written}"}}'.encode()
    response = await service.client.post("/rewrite", content=body, headers=JSON)
    assert response.status_code == 200, response.text
    assert response.json()["query"] == read


async def test_half_of_an_emoji_in_a_batch_costs_no_other_query_its_answer(
    service: Service,
) -> None:
    body = rb'{"queries": ["a stake", "phone \ud83d", "\ud83d"]}'
    response = await service.client.post("/rewrite/batch", content=body, headers=JSON)
    assert response.status_code == 200, response.text
    first, second, third = response.json()["answers"]
    assert (first["query"], second["query"]) == ("a stake", "phone")
    assert (third["type"], third["index"]) == ("urn:requery:problem:invalid-query", 2)


async def test_a_whole_number_may_be_written_with_a_point(service: Service) -> None:
    answer = await service.rewrite("a stake", max_rewrites=1.0, deadline_ms=30_000.0)
    assert len(answer["rewrites"]) == 1


async def test_a_problem_shows_nothing_that_a_terminal_would_act_on(service: Service) -> None:
    response = await service.client.post(
        "/overrides",
        json={"kind": "pin", "query": "a", "rewrites": ["b"], "reason": "r", "\x1b[31m\u202e": 1},
    )
    assert response.status_code == 422
    problem = Problem.model_validate_json(response.content)
    assert problem.detail.isprintable()
    assert [e.field for e in problem.errors or []] == ["\\x1b[31m\\u202e"]


async def test_all_bad_fields_are_listed(service: Service) -> None:
    response = await service.client.post(
        "/rewrite", json={"query": 1, "max_rewrites": 99, "explain": "yes", "nope": None}
    )
    fields = [e["field"] for e in response.json()["errors"]]
    assert fields == ["query", "max_rewrites", "explain", "nope"]


@pytest.mark.parametrize("declared", ["application/x-www-form-urlencoded", "text/plain", ""])
async def test_a_wrong_content_type_is_answered_with_the_right_one(
    service: Service, declared: str
) -> None:
    response = await service.client.post(
        "/rewrite", content=b'{"query": "a"}', headers={"content-type": declared}
    )
    assert response.status_code == 415
    assert "curl: -H 'content-type: application/json'" in response.json()["detail"]


@pytest.mark.parametrize("declared", ["application/json; charset=utf-8", "Application/JSON"])
async def test_json_by_other_spellings_is_taken(service: Service, declared: str) -> None:
    response = await service.client.post(
        "/rewrite", content=b'{"query": "a stake"}', headers={"content-type": declared}
    )
    assert response.status_code == 200


async def test_a_large_body_is_refused_declared_or_not(service: Service) -> None:
    body = json.dumps({"query": "x" * 1_000_000}).encode()

    async def streamed() -> AsyncIterator[bytes]:
        for start in range(0, len(body), 8192):
            yield body[start : start + 8192]

    for content in (body, streamed()):
        response = await service.client.post("/rewrite", content=content, headers=JSON)
        assert response.status_code == 413
        assert response.json()["type"] == "urn:requery:problem:payload-too-large"
        assert "262144 bytes" in response.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path", "code"),
    [("GET", "/nothing", 404), ("GET", "/rewrite", 405), ("DELETE", "/versions", 405)],
)
async def test_unknown_paths_and_methods_are_problems(
    service: Service, method: str, path: str, code: int
) -> None:
    response = await service.client.request(method, path)
    assert response.status_code == code
    assert response.headers["content-type"] == "application/problem+json"
    assert Problem.model_validate_json(response.content).type.startswith("urn:requery:problem:")
    assert ("allow" in response.headers) == (code == 405)


@pytest.mark.parametrize("value", ["soon", "1.5", "", "１２", "9" * 40])
async def test_a_deadline_header_that_is_no_number_is_refused(service: Service, value: str) -> None:
    response = await service.client.post(
        "/rewrite",
        json={"query": "a"},
        headers={b"x-request-deadline-ms": value.encode()},
    )
    assert response.status_code == 422
    assert response.json()["errors"][0]["field"] == "header X-Request-Deadline-Ms"
