"""What is wrong with an answer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import requests
import schemathesis
from schemathesis.checks import CheckFunction, load_all_checks
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.generation.case import Case
from schemathesis.specs.openapi import checks

from tests.contract.document import Operation
from tests.contract.wire import Answer, Sent

BUSY = {503, 504, 507}
"""Server errors that are answers, if they are documented."""
_EDGE = {400, 404, 405, 408, 413, 414, 431}
"""What can be said to a request for no operation at all."""

_CHECKS: list[CheckFunction] = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
]
_REASONS = re.compile(
    "|".join((
        "holds no printable text", "is empty", "no letter or digit", "characters long",
        "is the same as", "has passed", "must sum to 1", "must be printable", "no model version",
        "printable character", "at least one printable", "is not the one in the path",
        # schemathesis makes up values that the pattern of this header forbids.
        "entity tag as GET gave it", "must be a time with its zone", "is too far away",
        "is required, or",
        "there is no version", "is not known", "must be 1 to 64 letters",
    ))
)  # fmt: skip
"""Why data that the document allows may be refused: what no JSON schema can say."""
_ORDINARY = re.compile(rb"[\x21-\x7e][\x20-\x7e]*|")


class Judge:
    """Holds answers against the OpenAPI document.

    Args:
        document: the OpenAPI document.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        load_all_checks()
        self.schema = schemathesis.openapi.from_dict(document)

    def generated(self, operation: Operation) -> Any:
        """What schemathesis makes cases of."""
        return self.schema[operation.path][operation.method]

    def complaints(
        self, operation: Operation, sent: Sent, answer: Answer, case: Case[Any] | None = None
    ) -> list[str]:
        """What is wrong; empty if nothing is.

        Args:
            operation: what was called.
            sent: the request.
            answer: the answer.
            case: what the request was made of, if schemathesis made it: then whether it should
                have been taken is judged too.
        """
        found = list(_always(answer))
        if sent.method != operation.method or not operation.answers(sent.path):
            if answer.status not in _EDGE:
                found.append(f"{answer.status} to a request for nothing")
            return found
        documented = {int(code) for code in operation.item["responses"]}
        if answer.status >= 500 and answer.status not in BUSY & documented:
            found.append(f"server error {answer.status}")
        found += _undocumented_problem(operation, answer)
        chosen = list(_CHECKS)
        if case is None:
            made = self.generated(operation)
            path = {one["name"]: "any" for one in operation.parameters("path")}
            case = Case(made, made.method.upper(), made.path, path_parameters=path)
        elif case.meta is not None and case.meta.generation.mode.is_negative:
            # Any refusal will do, one for the length of the body too.
            if answer.status < 400 and not _refused_in_part(answer):
                chosen.append(checks.negative_data_rejection)
        elif answer.status in (400, 422) and not _explained(answer):
            found.append(f"{answer.status} to data that the document allows")
        response = schemathesis.Response(
            status_code=answer.status,
            headers={k.decode("latin-1"): [v.decode("latin-1")] for k, v in answer.headers},
            content=answer.body,
            request=_prepared(sent),
            elapsed=0.0,
            verify=False,
            encoding="utf-8",
        )
        try:
            case.validate_response(response, checks=chosen)
        except FailureGroup as group:
            found += [_told(one) for one in group.exceptions]
        except Failure as failure:
            found.append(_told(failure))
        return found


def _always(answer: Answer) -> Iterator[str]:
    """Holds of every answer, documented or not."""
    for name, value in answer.headers:
        if not re.fullmatch(rb"[\x20-\x7e]*", value):
            yield f"header {name!r} has the value {value!r}"
    if not answer.header("x-request-id") or not answer.header("server-timing"):
        yield "no X-Request-ID or no Server-Timing"
    if b"Traceback (most recent" in answer.body:
        yield "a stack trace"
    if answer.media_type == "application/problem+json":
        yield from _of_a_problem(answer)
    elif answer.status >= 400:
        yield f"{answer.status} without a problem"


def _of_a_problem(answer: Answer) -> Iterator[str]:
    problem = answer.json()
    if problem["status"] != answer.status:
        yield f"the problem says {problem['status']} and the answer {answer.status}"
    if problem["request_id"] != answer.header("x-request-id"):
        yield "the problem has another request id than the header"
    for text in (problem["detail"], *(e["field"] for e in problem.get("errors") or ())):
        if not text.isprintable():
            yield f"not printable: {text!r}"


def _undocumented_problem(operation: Operation, answer: Answer) -> Iterator[str]:
    """Whether the document has an example of the problem, if it has one of the status."""
    response = operation.item["responses"].get(str(answer.status), {})
    content = response.get("content", {}).get(answer.media_type)
    if content and "examples" in content:
        kinds = {example["value"]["type"] for example in content["examples"].values()}
        if answer.json()["type"] not in kinds:
            yield f"{answer.json()['type']} is not among {sorted(kinds)}"


def _explained(answer: Answer) -> bool:
    details = [error["detail"] for error in answer.json().get("errors") or ()]
    return bool(details) and all(_REASONS.search(detail) for detail in details)


def _refused_in_part(answer: Answer) -> bool:
    """Whether it is that of a batch, and says of one of its queries that it is invalid."""
    content = answer.json() if answer.media_type == "application/json" else None
    answers = content.get("answers", ()) if isinstance(content, dict) else ()
    return any(one.get("status") == 422 for one in answers)


def _prepared(sent: Sent) -> requests.PreparedRequest:
    """What the checks want to see of a request."""
    request = requests.PreparedRequest()
    request.method = sent.method
    request.url = "http://127.0.0.1" + sent.target.decode("ascii")
    # What no client would send is of no use to the checks, which try to write it down.
    request.headers = requests.structures.CaseInsensitiveDict(
        {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in sent.headers
            if _ORDINARY.fullmatch(value)
        }
    )
    request.body = sent.body
    return request


def _told(failure: BaseException) -> str:
    return " ".join(str(failure).split())[:400]
