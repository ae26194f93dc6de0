"""The judge finds fault where there is one: without that, the campaigns would prove nothing."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import orjson
import pytest

from tests.contract.campaign import Campaign
from tests.contract.document import Operation, operations
from tests.contract.judge import Judge
from tests.contract.subject import NAMES, Subject
from tests.contract.wire import Answer, Sent


class Court:
    """A true exchange, to be tampered with."""

    def __init__(self, subject: Subject, name: str) -> None:
        self.judge = Judge(subject.document)
        self.operation: Operation = next(
            one for one in operations(subject.document, NAMES) if str(one) == name
        )
        self.sent: Sent = self.operation.valid()[0]
        subject.reset()
        self.answer = subject.send(self.sent)

    def complaints(self, **changes: Any) -> str:
        return "; ".join(
            self.judge.complaints(self.operation, self.sent, replace(self.answer, **changes))
        )


@pytest.fixture(scope="module")
def court(subject: Subject) -> Court:
    return Court(subject, "POST /rewrite")


def test_the_truth_is_accepted(court: Court) -> None:
    assert court.answer.status == 200
    assert court.complaints() == ""


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"status": 500}, "server error 500"),
        ({"status": 507}, "server error 507"),
        ({"status": 418}, "Undocumented status code"),
        ({"status": 404}, "404 without a problem"),
        ({"body": b"{}"}, "required property"),
        ({"body": b'{"query": 1}'}, "required property"),
        ({"body": b"Traceback (most recent call last)"}, "stack trace"),
        ({"headers": []}, "no X-Request-ID"),
    ],
)
def test_lies_are_found(court: Court, changes: dict[str, Any], expected: str) -> None:
    assert expected in court.complaints(**changes)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        (b"content-type", b"text/html", "Undocumented Content-Type"),
        (b"cache-status", None, "required headers are missing"),
        (b"x-request-id", b"a\r\nset-cookie: b", "has the value"),
        (b"server-timing", b"\xff", "has the value"),
    ],
)
def test_headers_are_looked_at(
    court: Court, name: bytes, value: bytes | None, expected: str
) -> None:
    headers = [(k, v) for k, v in court.answer.headers if k != name]
    if value is not None:
        headers.append((name, value))
    assert expected in court.complaints(headers=headers)


def test_a_value_outside_the_schema_is_found(court: Court) -> None:
    content = orjson.loads(court.answer.body)
    content["status"] = "perfect"
    assert "perfect" in court.complaints(body=orjson.dumps(content))


def test_problems_are_read(subject: Subject) -> None:
    court = Court(subject, "GET /overrides/{id}")
    sent = replace(court.sent, target=b"/overrides/nobody")
    answer = subject.send(sent)
    assert answer.status == 404
    assert court.judge.complaints(court.operation, sent, answer) == []
    for field, value, expected in (
        ("status", 400, "the problem says 400"),
        ("request_id", "another", "another request id"),
        ("detail", "a\x00b", "not printable"),
        ("type", "urn:requery:problem:unknown-version", "is not among"),
    ):
        problem = {**answer.json(), field: value}
        told = replace(answer, body=orjson.dumps(problem))
        assert expected in "; ".join(court.judge.complaints(court.operation, sent, told))


def test_a_path_of_no_operation_is_no_fault_of_one(subject: Subject) -> None:
    court = Court(subject, "GET /overrides/{id}")
    sent = replace(court.sent, target=b"/overrides/..%2F..%2Fetc%2Fpasswd")
    assert subject.send(sent).status == 404
    assert court.judge.complaints(court.operation, sent, subject.send(sent)) == []
    assert court.judge.complaints(court.operation, sent, court.answer) == [
        "200 to a request for nothing"
    ]


def test_an_undocumented_rule_is_found(subject: Subject) -> None:
    """Were the bounds of max_rewrites not in the document, its refusals would have no reason."""
    document = copy.deepcopy(subject.document)
    schema = document["components"]["schemas"]["RewriteRequest"]["properties"]["max_rewrites"]
    schema["anyOf"] = [{"type": "integer", "minimum": 33}]
    schema.pop("default", None)
    campaign = Campaign(subject)
    campaign._judge = Judge(document)
    campaign.operations = [
        one for one in operations(document, NAMES) if str(one) == "POST /rewrite"
    ]
    campaign.generated(30)
    assert any("422 to data that the document allows" in one for one in campaign.failures)


def test_what_is_logged_counts(subject: Subject) -> None:
    import logging

    import structlog

    structlog.get_logger().warning("drain_cut_off")
    structlog.get_logger().info("anything")
    assert subject.faults() == []
    structlog.get_logger().error("generation_failed")
    structlog.get_logger().warning("cache_not_kept")
    logging.getLogger("asyncio").error("Task exception was never retrieved")
    assert len(subject.faults()) == 3
    assert subject.faults() == []


def test_what_comes_out_of_the_application_is_a_failure(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_sent: Sent) -> Answer:
        raise RuntimeError("boom")

    campaign = Campaign(subject)
    monkeypatch.setattr(subject, "send", broken)
    campaign.send(campaign.operations[0], "valid", campaign.operations[0].valid()[0])
    assert "RuntimeError came out" in campaign.failures[0]
