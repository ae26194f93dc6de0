"""Access lines are written once in each turn of the loop, and an end comes in the middle of one."""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.support.raw_http import Caller, rewrite_request
from tests.support.scripted_process import PATIENCE_S, ScriptedProcess

pytestmark = [pytest.mark.integration, pytest.mark.timeout(3 * PATIENCE_S)]

CALLERS = 8
ASKED = 50


def _ask(port: int, caller: int) -> list[str]:
    """The ids of the answers."""
    with Caller(port) as connection:
        return [
            str(
                connection.ask(rewrite_request(f"stake {caller} {number % 5}")).json()["request_id"]
            )
            for number in range(ASKED)
        ]


def test_a_process_that_is_told_to_stop_has_written_a_line_for_every_answer() -> None:
    with ScriptedProcess(shutdown_delay_s=0) as service:
        with ThreadPoolExecutor(CALLERS) as pool:
            answered = [
                one
                for ids in pool.map(_ask, [service.port] * CALLERS, range(CALLERS))
                for one in ids
            ]
        service.tell(signal.SIGTERM)
        assert service.wait() == 0
        lines = service.named("request")
        assert sorted(line["request_id"] for line in lines) == sorted(answered)
        assert service.events[-1]["event"] == "stopped"
        assert len({line["timestamp"] for line in lines}) > 1


def test_a_process_that_is_told_twice_loses_no_line_either() -> None:
    # The engine never gets there, so that the first signal alone ends nothing.
    with ScriptedProcess("--delay-ms", "600000", shutdown_grace_s=600) as service:
        with Caller(service.port) as hung, Caller(service.port) as caller:
            hung.send(rewrite_request("a stake", deadline_ms=600_000))
            answers = [caller.ask(rewrite_request("none", max_rewrites=0)) for _ in range(20)]
            assert {answer.status for answer in answers} == {422}
            service.tell(signal.SIGTERM)
            service.until("stopping")
            service.insist(signal.SIGTERM)
        assert service.wait() == 128 + signal.SIGTERM
        assert len(service.named("request")) == len(answers)
