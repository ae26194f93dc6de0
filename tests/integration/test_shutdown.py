"""Told to stop under load: whoever could ask gets an answer, and the process ends in order."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from dataclasses import dataclass, field

import pytest

from tests.support.raw_http import Caller, RawResponse, rewrite_request
from tests.support.scripted_process import PATIENCE_S, ScriptedProcess
from tests.support.waiting import wait_until

pytestmark = pytest.mark.integration

CALLERS = 12
"""Of each kind."""
LETTERS = str.maketrans("0123456789", "abcdefghij")


@dataclass
class Load:
    """Callers of one kind, in threads, that ask until nobody answers any more."""

    port: int
    kept_alive: bool
    counts: Counter[str] = field(default_factory=Counter)
    lost: list[str] = field(default_factory=list)
    """Requests that were sent whole and got no answer, with what happened instead."""
    wrong: list[RawResponse] = field(default_factory=list)
    reused: list[str] = field(default_factory=list)
    """Answers on a connection whose last answer had been announced."""

    def start(self) -> None:
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(CALLERS)]
        for thread in self._threads:
            thread.start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()

    def _ask(self, who: int) -> None:
        caller: Caller | None = None
        n = 0
        while True:
            n += 1
            try:
                caller = caller or Caller(self.port, patience_s=PATIENCE_S)
            except ConnectionRefusedError:
                return
            except ConnectionResetError:
                # Refused after all: nothing had been sent.
                return
            # In letters: rewrites must keep the numbers of a query, and AA is a size.
            caller = self._one(caller, f"stake k{who:02} k{n:06}".translate(LETTERS))

    def _one(self, caller: Caller, query: str) -> Caller | None:
        """One request; the caller if it may be used again."""
        if caller.closed_by_peer:
            # As every pool does: a connection that was closed while idle is not used.
            self.counts["closed while idle"] += 1
            caller.close()
            return None
        try:
            caller.send(rewrite_request(query))
            answer = caller.read()
        except (ConnectionError, TimeoutError) as error:
            self.lost.append(f"{query}: {error!r}")
            caller.close()
            return None
        self.counts[f"answered {answer.status}"] += 1
        if answer.status != 200 or answer.json()["status"] != "ok":
            self.wrong.append(answer)
        if answer.last:
            self.counts["last"] += 1
        if answer.last or not self.kept_alive:
            caller.close()
            return None
        return caller


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_no_request_is_lost_when_it_is_told_to_stop_under_load(number: signal.Signals) -> None:
    with ScriptedProcess(
        "--delay-ms", "20", "--slots", "1000",
        shutdown_delay_s=1, shutdown_grace_s=60, default_deadline_ms=30_000,
        admission_max_candidates=100_000, admission_target_ms=30_000, log_requests=False,
    ) as process:  # fmt: skip
        loads = [Load(process.port, kept_alive=True), Load(process.port, kept_alive=False)]
        for load in loads:
            load.start()
        wait_until(
            lambda: all(load.counts["answered 200"] >= 5 * CALLERS for load in loads),
            alive=lambda: process.running,
        )
        process.tell(number)
        process.until("stopping")
        for load in loads:
            load.join()
        assert process.wait() == 0
    assert process.err == ""
    assert [line["event"] for line in process.events if line["level"] != "info"] == []
    for load in loads:
        assert load.lost == []
        assert load.wrong == []
    # Those that keep their connections were told to look elsewhere.
    assert loads[0].counts["last"] >= 1
