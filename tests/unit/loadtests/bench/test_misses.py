from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from loadtests.bench import misses
from loadtests.bench.misses import MissesPlan
from loadtests.bench.peers import Peer, Work
from loadtests.processes import ServerFailed
from loadtests.queries import Queries
from loadtests.report import Report, Row
from loadtests.runner import Context

PLAN = MissesPlan(single=2, batch=3, warm=1, rounds=2, together=True)


class Fake(Peer):
    """A peer that only logs its calls."""

    def __init__(
        self, name: str, log: list[str], *, tokens: int = 10, fails: Sequence[int] = ()
    ) -> None:
        self.name, self.setup = name, {}
        self._log, self._tokens = log, tokens
        self._fails = set(fails)
        self._work = Work()
        self.starts = 0
        self.asked: list[str] = []

    async def start(self) -> None:
        self.starts += 1
        self._log.append(f"{self.name} start")
        if self.starts in self._fails:
            raise ServerFailed("no room")

    async def ask(self, query: str) -> None:
        self.asked.append(query)
        self._work += Work(5, self._tokens)

    async def work(self) -> Work:
        return self._work

    def pause(self) -> None:
        self._log.append(f"{self.name} pause")

    def resume(self) -> None:
        self._log.append(f"{self.name} resume")

    async def close(self) -> None:
        self._log.append(f"{self.name} close")


def context(folder: Path = Path()) -> Context:
    queries = Queries(["steel stake", "garden hose reel"], seed=0)
    return Context(queries, folder, 0, lambda _: None)


def rows_of(report: Report) -> list[Row]:
    return [row for row in report.rows if isinstance(row, Row)]


SAID = {"prepare": 0.0005, "cache": 0.001, "generate": 0.096, "filter": 0.0005, "total": 0.1}


def test_the_services_own_share_is_the_total_less_generation() -> None:
    answers = [SAID, {"total": 0.2, "generate": 0.19}, {"total": 0.001}]
    share = misses.own_share(answers)
    assert share is not None
    assert share["own_ms"]["count"] == 2
    assert share["own_ms"]["p50"] == pytest.approx(4.0)
    assert share["own_ms"]["max"] == pytest.approx(10.0)
    assert share["share_of_total"] == pytest.approx(0.04)
    assert misses.own_share([{"total": 0.001}]) is None


def test_a_stage_that_an_answer_lacks_took_no_time_there() -> None:
    assert misses.stage_medians([{"total": 0.1, "admit": 0.01}, {"total": 0.3}]) == {
        "total": 100.0,
        "admit": 0.0,
    }


async def test_peers_take_turns_and_rest_between_them() -> None:
    log: list[str] = []
    a, b = Fake("a", log), Fake("b", log)
    section = await misses.compare(PLAN, context(), [a, b])
    assert log == [
        "a start", "a pause", "b start", "b pause", "a resume", "a pause", "b resume", "b pause",
        "a close", "b close",
    ]  # fmt: skip
    assert a.asked == b.asked
    assert len(set(a.asked)) == len(a.asked) == 1 + 2 * (2 + 3)
    modes = section.figures["peers"]["a"]["modes"]
    assert [modes[m]["requests"] for m in ("single", "batch")] == [4, 6]
    assert modes["single"]["generated_tokens_per_request"] == 10
    assert len(rows_of(section)) == 4
    assert not any("INVALID" in row.note for row in rows_of(section))
    assert "a " in rows_of(section)[2].ratio


async def test_peers_that_need_the_room_are_started_for_each_turn() -> None:
    log: list[str] = []
    plan = MissesPlan(single=1, batch=1, warm=1, rounds=2, together=False)
    await misses.compare(plan, context(), [Fake("a", log), Fake("b", log)])
    assert log[:4] == ["a start", "a close", "b start", "b close"]
    assert "a pause" not in log
    assert log.count("a start") == 2


async def test_a_peer_that_breaks_is_reported_and_left_out() -> None:
    log: list[str] = []
    b = Fake("b", log, fails=[1])
    section = await misses.compare(PLAN, context(), [Fake("a", log), b])
    assert section.figures["not_measured"] == {"b": "no room"}
    assert b.asked == []
    assert b.starts == 1
    assert [row.note for row in rows_of(section) if row.what == "b"] == ["no room"]
    assert section.figures["peers"]["a"]["modes"]["single"]["requests"] == 4


async def test_unequal_work_makes_a_comparison_invalid() -> None:
    log: list[str] = []
    section = await misses.compare(PLAN, context(), [Fake("a", log), Fake("b", log, tokens=12)])
    assert [("unequal" in row.note) for row in rows_of(section)] == [False, False, True, True]


async def test_ratios_say_how_many_times_as_fast_the_first_is() -> None:
    record = misses.Record(Fake("fast", []))
    other = misses.Record(Fake("slow", []))
    for one, per_s in ((record, 10.0), (other, 4.0)):
        one.rounds["single"].append({"per_s": per_s, "median_ms": 1000 / per_s})
        one.rounds["batch"].append(
            {"per_s": per_s, "tokens_per_s": 8 * per_s, "median_ms": 1000 / per_s}
        )
    section = misses._report([record, other], {})
    found = section.figures["ratios_of_fast"]
    assert found["slow, single"]["median"] == 2.5
    assert found["slow, batch"]["median"] == 2.5
    assert found["fast, single"] is None
