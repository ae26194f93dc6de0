"""Batches: order, one deadline, a bound on what is under way, and faults that stay with one."""

from __future__ import annotations

import asyncio

import pytest

from service.errors import InvalidQuery, RequeryError
from service.filtering.candidates import Selection
from service.pipeline.answer import Answer
from service.pipeline.batch import Batches, Done
from service.pipeline.params import RewriteParams
from service.resilience.deadline import Deadline
from service.telemetry.stopwatch import Stopwatch

NEVER = 60_000


def ask(query: str, *, ms: float = NEVER) -> RewriteParams:
    return RewriteParams(query, Deadline.after(ms))


def answer(query: str) -> Answer:
    return Answer(query, "test-1", Selection((), ()), "none", "engine")


class Pipeline:
    """Answers each query when it is let, and knows how many were under way at once."""

    def __init__(self, *, held: bool = False) -> None:
        self.begun: list[str] = []
        self.most = 0
        self.go_on = asyncio.Event()
        if not held:
            self.go_on.set()
        self._under_way = 0
        self._moved = asyncio.Event()

    async def until_begun(self, n: int) -> None:
        while len(self.begun) < n:
            self._moved.clear()
            await self._moved.wait()

    async def rewrite(self, asked: RewriteParams, watch: Stopwatch) -> Answer:
        if not asked.may_generate:
            return answer(asked.query)
        self.begun.append(asked.query)
        self._moved.set()
        self._under_way += 1
        self.most = max(self.most, self._under_way)
        try:
            await self.go_on.wait()
            if asked.query == "bad":
                raise InvalidQuery("is bad")
            if asked.query == "broken":
                raise KeyError("inner secret")
            # The later ones overtake the earlier.
            await asyncio.sleep(0 if asked.query > "m" else 0.001)
            return answer(asked.query)
        finally:
            self._under_way -= 1


async def test_outcomes_come_in_order_and_a_fault_stays_with_its_query(
    capsys: pytest.CaptureFixture[str],
) -> None:
    outcomes = await Batches(Pipeline().rewrite, concurrency=3).answer(
        [ask(query) for query in ("a", "z", "bad", "broken", "b")]
    )
    assert [one.answer.query for one in outcomes if isinstance(one, Done)] == ["a", "z", "b"]
    assert isinstance(outcomes[2], InvalidQuery)
    assert type(outcomes[3]) is RequeryError
    assert "inner secret" not in str(outcomes[3])
    assert "inner secret" in capsys.readouterr().out


async def test_no_more_than_the_bound_are_under_way_whatever_the_number_of_batches() -> None:
    pipeline = Pipeline(held=True)
    batches = Batches(pipeline.rewrite, concurrency=4)
    queries = [ask(f"q{i}") for i in range(20)]
    both = asyncio.gather(batches.answer(queries), batches.answer(queries))
    await pipeline.until_begun(4)
    for _ in range(50):
        await asyncio.sleep(0)
    assert len(pipeline.begun) == 4
    pipeline.go_on.set()
    first, second = await both
    assert pipeline.most == 4
    assert all(isinstance(one, Done) for one in first + second)


async def test_what_has_no_turn_by_the_deadline_is_asked_of_the_cache_alone() -> None:
    pipeline = Pipeline(held=True)
    batches = Batches(pipeline.rewrite, concurrency=1)
    first = asyncio.create_task(batches.answer([ask("a")]))
    await pipeline.until_begun(1)
    late = await batches.answer([ask("b", ms=20), ask("c", ms=20)])
    assert [one.answer.query for one in late if isinstance(one, Done)] == ["b", "c"]
    pipeline.go_on.set()
    assert isinstance((await first)[0], Done)
    assert pipeline.begun == ["a"]
    # The slot that was waited for in vain has not been lost.
    assert isinstance((await batches.answer([ask("d")]))[0], Done)


async def test_a_deadline_that_has_passed_begins_nothing() -> None:
    pipeline = Pipeline()
    asked = ask("a", ms=0)
    (outcome,) = await Batches(pipeline.rewrite, concurrency=2).answer([asked])
    assert isinstance(outcome, Done)
    assert pipeline.begun == []
