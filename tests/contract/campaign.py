"""Sends requests by the thousand and keeps what is wrong with the answers."""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

import requests
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.generation.case import Case

from tests.contract import corpus
from tests.contract.document import Operation, operations
from tests.contract.judge import Judge
from tests.contract.subject import NAMES, Subject
from tests.contract.wire import Answer, Sent

_RESET_EVERY = 40
"""Requests between two resets: what one has broken for the next ones does not last."""
_MOST_FAILURES = 100


class Campaign:
    """All operations of one application.

    Args:
        subject: the application.
        over: whether it is time to stop.
        resets: whether the application is put back in order every so often.
    """

    def __init__(
        self, subject: Subject, *, over: Callable[[], bool] = lambda: False, resets: bool = True
    ) -> None:
        self.subject = subject
        self.operations = operations(subject.document, NAMES)
        self.statuses: Counter[int] = Counter()
        self.failures: list[str] = []
        """One for each kind of fault and operation."""
        self._judge = Judge(subject.document)
        self._over = over
        self._resets = resets
        self._told: set[tuple[str, str]] = set()

    def send(
        self, operation: Operation, label: str, sent: Sent, case: Case[Any] | None = None
    ) -> Answer | None:
        """Send a request and judge its answer; ``None`` if there is none."""
        if self._resets and self.subject.requests % _RESET_EVERY == 0:
            self.subject.reset()
        answer, found = None, []
        try:
            answer = self.subject.send(sent)
        except Exception as error:  # noqa: BLE001 - whatever it is, it should not come out
            found.append(f"{type(error).__name__} came out: {traceback.format_exc()}")
        else:
            self.statuses[answer.status] += 1
            found += self._judge.complaints(operation, sent, answer, case)
        for complaint in [*found, *self.subject.faults()]:
            self._tell(operation, label, complaint, sent, answer)
        return answer

    def samples(self) -> Iterator[tuple[Operation, Answer | None]]:
        """Every valid request, each from a fresh state."""
        for operation in self.operations:
            for sent in operation.valid():
                self.subject.reset()
                yield operation, self.send(operation, "valid", sent)

    def hostile_values(self, *, stride: int = 1, offset: int = 0) -> None:
        """The corpus in every place of every request.

        Args:
            stride: send one of so many; every place and every value has its turn.
            offset: which one.
        """
        for i, operation in enumerate(self.operations):
            for j, place in enumerate(operation.places()):
                for name, text in _every(corpus.STRINGS.items(), stride, offset + i + j):
                    self.send(operation, f"{place.where}: {name}", place.text(text))
                if place.raw is not None:
                    for name, raw in _every(corpus.VALUES.items(), stride, offset + i + j):
                        self.send(operation, f"{place.where}: {name}", place.raw(raw))
                if self._over():
                    return

    def hostile_bodies(self, *, stride: int = 1, offset: int = 0) -> None:
        """Bodies that are no such object, and content types, for every operation with a body."""
        for i, operation in enumerate(self.operations):
            valid = operation.valid()[0].body or b'{"query":"a"}'
            for name, body in _every(corpus.bodies(valid), stride, offset + i):
                self.send(operation, f"body: {name}", operation.with_body(body))
            for name, kind in _every(corpus.CONTENT_TYPES.items(), stride, offset + i):
                self.send(operation, f"content type: {name}", operation.with_body(valid, kind))
            if self._over():
                return

    def hostile_headers(self, *, stride: int = 1, offset: int = 0) -> None:
        """The corpus in every header that some layer might read."""
        for i, operation in enumerate(self.operations):
            for j, header in enumerate(corpus.HEADERS):
                for name, value in _every(corpus.HEADER_VALUES.items(), stride, offset + i + j):
                    label = f"header {header.decode()}: {name}"
                    self.send(operation, label, operation.with_header(header, value))
            if self._over():
                return

    def boundaries(self, *, stride: int = 1, offset: int = 0) -> None:
        """What schemathesis derives from the document: each bound, and just beyond it."""
        for operation in self.operations:
            cases = self._judge.schema.iter_coverage_cases(
                self._judge.generated(operation),
                generation_modes=list(GenerationMode),
                generation_config=self._judge.schema.config.generation,
            )
            for case in _every(cases, stride, offset):
                self._try_case(operation, "boundary", case)
            if self._over():
                return

    def generated(self, examples: int, *, number: int = 0) -> None:
        """What schemathesis makes up: valid and invalid requests.

        Args:
            examples: of each kind, for each operation.
            number: another one gives other requests.
        """
        for operation in self.operations:
            for mode in GenerationMode:
                self._generate(operation, mode, examples, number)
                if self._over():
                    return

    def _generate(
        self, operation: Operation, mode: GenerationMode, examples: int, number: int
    ) -> None:
        @settings(
            max_examples=examples,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            verbosity=Verbosity.quiet,
            suppress_health_check=list(HealthCheck),
        )
        @seed(number)
        @given(self._judge.generated(operation).as_strategy(mode), st.integers(0, 3))
        def each(case: Case[Any], steering: int) -> None:
            if self._over():
                return
            if steering and mode.is_positive:
                _steer(case, operation)
            self._try_case(operation, "generated", case)

        # Nothing about some operations can be wrong.
        with suppress(Unsatisfiable):
            each()

    def _try_case(self, operation: Operation, label: str, case: Case[Any]) -> None:
        try:
            sent = _sent(case)
        except (requests.exceptions.InvalidHeader, UnicodeError):
            return  # no HTTP client would send it
        self.send(operation, label, sent, case)

    def _tell(
        self, operation: Operation, label: str, complaint: str, sent: Sent, answer: Answer | None
    ) -> None:
        kind = (str(operation), complaint[:60])
        if kind in self._told or len(self.failures) >= _MOST_FAILURES:
            return
        self._told.add(kind)
        got = f"{answer.status} {answer.body[:400]!r}" if answer is not None else "no answer"
        self.failures.append(f"{operation}: {label}: {complaint}\n  sent {sent}\n  got {got}")


def _steer(case: Case[Any], operation: Operation) -> None:
    """Put names that exist in the place of made-up ones: else most requests find nothing to do."""
    names = {one["name"]: one for one in operation.parameters()}
    for container in (case.path_parameters, case.query, case.headers):
        for name in list(container or ()):
            if name in names and name in NAMES:
                container[name] = NAMES[name]
    if any(name == "If-Match" for name in names):
        case.headers["If-Match"] = "*"
    case.body = _with_names(case.body)


def _with_names(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: NAMES[key] if key in NAMES and one is not None else _with_names(one)
            for key, one in value.items()
        }
    if isinstance(value, list):
        return [_with_names(one) for one in value]
    return value


def _sent(case: Case[Any]) -> Sent:
    prepared = requests.Request(**case.as_transport_kwargs(base_url="http://127.0.0.1")).prepare()
    body = prepared.body or b""
    if not isinstance(body, str | bytes):
        raise TypeError(f"a body of {type(body)}")
    return Sent(
        prepared.method or "GET",
        prepared.path_url.encode("ascii"),
        tuple((_latin(name), _latin(value)) for name, value in prepared.headers.items()),
        body.encode("utf-8", "surrogatepass") if isinstance(body, str) else body,
    )


def _latin(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("latin-1")


def _every(things: Iterable[Any], stride: int, offset: int) -> Iterator[Any]:
    for i, thing in enumerate(things):
        if (i + offset) % stride == 0:
            yield thing
