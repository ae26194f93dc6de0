from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from loadtests.bench import misses
from loadtests.bench.peer import PeerFailed, Work
from loadtests.bench.plans import MissesPlan
from loadtests.queries import Queries

PLAN = MissesPlan(single=2, batch=3, warm=1, rounds=2, together=True)


class Fake:
    """A peer that only notes what is done to it."""

    setup: ClassVar[dict[str, Any]] = {}

    def __init__(
        self, name: str, log: list[str], *, tokens: int = 10, fails: Sequence[int] = ()
    ) -> None:
        self.name, self._log, self._tokens = name, log, tokens
        self._fails = set(fails)
        self._work = Work()
        self.starts = 0
        self.asked: list[str] = []

    async def start(self) -> None:
        self.starts += 1
        self._log.append(f"{self.name} start")
        if self.starts in self._fails:
            raise PeerFailed("no room")

    async def ask(self, query: str) -> None:
        self.asked.append(query)
        self._work += Work(5, self._tokens)

    async def work(self) -> Work:
        return self._work

    def freeze(self) -> None:
        self._log.append(f"{self.name} freeze")

    def thaw(self) -> None:
        self._log.append(f"{self.name} thaw")

    async def close(self) -> None:
        self._log.append(f"{self.name} close")


def queries() -> Queries:
    return Queries(["steel stake", "garden hose reel"], seed=0)


def quiet(_text: str) -> None:
    pass


async def test_peers_take_turns_and_rest_between_them() -> None:
    log: list[str] = []
    a, b = Fake("a", log), Fake("b", log)
    section = await misses.run(PLAN, [a, b], queries(), quiet)
    assert log == [
        "a start", "a freeze", "b start", "b freeze", "a thaw", "a freeze", "b thaw", "b freeze",
        "a close", "b close",
    ]  # fmt: skip
    assert a.asked == b.asked
    assert len(set(a.asked)) == len(a.asked) == 1 + 2 * (2 + 3)
    modes = section.figures["peers"]["a"]["modes"]
    assert [modes[m]["requests"] for m in ("single", "batch")] == [4, 6]
    assert modes["single"]["generated_tokens_per_request"] == 10
    assert len(section.rows) == 4
    assert not any("INVALID" in row.note for row in section.rows)
    assert "a " in section.rows[2].ratio


async def test_peers_that_need_the_room_are_started_for_each_turn() -> None:
    log: list[str] = []
    plan = MissesPlan(single=1, batch=1, warm=1, rounds=2, together=False)
    await misses.run(plan, [Fake("a", log), Fake("b", log)], queries(), quiet)
    assert log[:4] == ["a start", "a close", "b start", "b close"]
    assert "a freeze" not in log
    assert log.count("a start") == 2


async def test_a_peer_that_breaks_is_reported_and_left_out() -> None:
    log: list[str] = []
    b = Fake("b", log, fails=[1])
    section = await misses.run(PLAN, [Fake("a", log), b], queries(), quiet)
    assert section.figures["not_measured"] == {"b": "no room"}
    assert b.asked == []
    assert b.starts == 1
    assert [row.note for row in section.rows if row.what == "b"] == ["no room"]
    assert section.figures["peers"]["a"]["modes"]["single"]["requests"] == 4


async def test_unequal_work_makes_a_comparison_invalid() -> None:
    log: list[str] = []
    section = await misses.run(PLAN, [Fake("a", log), Fake("b", log, tokens=12)], queries(), quiet)
    assert [("unequal" in row.note) for row in section.rows] == [False, False, True, True]


async def test_ratios_say_how_many_times_as_fast_the_first_is() -> None:
    record = misses.Record(Fake("fast", []))
    other = misses.Record(Fake("slow", []))
    for one, per_s in ((record, 10.0), (other, 4.0)):
        one.rounds["single"].append({"per_s": per_s, "median_ms": 1000 / per_s})
        one.rounds["batch"].append(
            {"per_s": per_s, "tokens_per_s": 8 * per_s, "median_ms": 1000 / per_s}
        )
    section = misses._section([record, other], {})
    found = section.figures["ratios_of_fast"]
    assert found["slow, single"]["median"] == 2.5
    assert found["slow, batch"]["median"] == 2.5
    assert found["fast, single"] is None
