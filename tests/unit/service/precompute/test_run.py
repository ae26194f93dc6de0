"""A run: how much is under way, what is noted when, and how it ends."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from service.precompute.errors import PrecomputeError
from service.precompute.journal import About, Journal, Result
from service.precompute.plan import Plan
from service.precompute.run import Outcome, Pace, Run

ABOUT = About("sft-1", "d" * 64, 2, "p" * 32, "engine")
GENERATED = Outcome(Result.GENERATED)
FAILED = Outcome(Result.FAILED, "no luck")


class Scripted:
    """A filler that does as it is told.

    Args:
        fails: how often each query fails before it is generated.
    """

    def __init__(
        self, *, size: int = 1, concurrency: int = 4, fails: dict[str, int] | None = None
    ) -> None:
        self.size, self.concurrency = size, concurrency
        self.fails = fails or {}
        self.filled: list[str] = []
        self.calls: list[int] = []
        self.most = self.under_way = 0
        self.fault_at: int | None = None
        self.after: dict[int, Any] = {}

    async def fill(self, queries: Sequence[str]) -> list[Outcome]:
        self.calls.append(len(queries))
        self.under_way += len(queries)
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(0)
            outcomes = [self._one(query) for query in queries]
        finally:
            self.under_way -= len(queries)
        if told := self.after.pop(len(self.filled), None):
            told()
        return outcomes

    def _one(self, query: str) -> Outcome:
        if len(self.filled) == self.fault_at:
            raise PrecomputeError("the engine has stopped")
        self.filled.append(query)
        left = self.fails.get(query, 0)
        self.fails[query] = left - 1
        return FAILED if left > 0 else GENERATED


class World:
    """A plan of ``n`` queries and the journal of its runs."""

    def __init__(self, folder: Path, n: int = 20) -> None:
        self.path = folder / "journal"
        self.journal: Journal | None = None
        self.plan = Plan.of({f"q{i:03}": float(n - i) for i in range(n)}, str)

    def run(self, filler: Scripted, **options: Any) -> Run:
        if self.journal is not None:
            self.journal.close()
        self.journal = Journal(self.path, ABOUT)
        head = options.pop("head", len(self.plan.queries))
        return Run(self.plan, head, filler=filler, journal=self.journal, **options)

    def noted(self) -> set[int]:
        """What is on disk."""
        if self.journal is not None:
            self.journal.close()
        journal = Journal(self.path, ABOUT)
        journal.close()
        return set(journal.done)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World(tmp_path)
    yield world
    world.noted()


async def test_the_head_is_done_in_order_and_no_more(world: World) -> None:
    filler = Scripted(concurrency=1)
    seen: list[int] = []
    run = world.run(filler, head=7, batch=4)
    run.on_progress(seen.append)
    tally = await run.go()
    assert filler.filled == list(world.plan.queries[:7])
    assert tally.cached == world.noted() == set(range(7))
    assert seen == [*range(8)]


@pytest.mark.parametrize(
    ("size", "concurrency", "batch", "most"),
    [(1, 4, 10, 4), (1, 50, 8, 8), (5, 3, 10, 10), (9, 1, 4, 4)],
)
async def test_under_way_is_what_fills_the_engine_but_no_more_than_a_batch(
    world: World, size: int, concurrency: int, batch: int, most: int
) -> None:
    filler = Scripted(size=size, concurrency=concurrency)
    tally = await world.run(filler, batch=batch).go()
    assert filler.most == most
    assert tally.count(Result.GENERATED) == 20


@pytest.mark.parametrize(
    ("size", "concurrency", "batch"), [(1, 4, 6), (1, 6, 6), (3, 1, 6), (2, 2, 6)]
)
async def test_at_every_moment_a_kill_would_lose_one_batch_at_most(
    world: World, size: int, concurrency: int, batch: int
) -> None:
    filler = Scripted(size=size, concurrency=concurrency)
    run = world.run(filler, batch=batch)
    lost: list[int] = []

    def measure(_done: int) -> None:
        on_disk = world.path.read_bytes().count(b"\n") - 1
        assert on_disk >= 0
        noted = len(run.tally.cached) - len(run._unnoted)
        lost.append(len(run.tally.cached) + filler.under_way - noted)

    run.on_progress(measure)
    await run.go()
    assert 0 < max(lost) <= batch


async def test_a_second_run_goes_on_where_the_first_was_told_to_stop(world: World) -> None:
    first = Scripted(concurrency=2)
    run = world.run(first, batch=4)
    first.after[9] = run.stop
    tally = await run.go()
    assert tally.stopped
    # What was under way has finished, and all of it is in the journal.
    assert len(first.filled) == 10
    assert world.noted() == tally.cached
    second = Scripted()
    again = await world.run(second, batch=4).go()
    assert sorted(first.filled + second.filled) == sorted(world.plan.queries)
    assert len(again.before) == 10
    assert again.cached == set(range(20))


async def test_what_fails_is_tried_once_more_at_the_end_and_then_left_to_the_next_run(
    world: World,
) -> None:
    filler = Scripted(fails={"q003": 1, "q005": 2})
    tally = await world.run(filler).go()
    assert filler.filled[20:] == ["q003", "q005"]
    assert tally.count(Result.GENERATED) == 19
    assert tally.reasons == {5: "no luck"}
    assert world.noted() == set(range(20)) - {5}
    last = Scripted()
    await world.run(last).go()
    assert last.filled == ["q005"]


async def test_an_engine_that_stops_ends_the_run_and_loses_nothing_that_was_done(
    world: World,
) -> None:
    filler = Scripted(concurrency=3)
    filler.fault_at = 11
    run = world.run(filler, batch=6)
    with pytest.raises(PrecomputeError, match="stopped"):
        await run.go()
    assert len(filler.filled) == 11
    assert world.noted() == run.tally.cached
    assert len(run.tally.cached) == 11


async def test_an_engine_that_stops_because_we_stop_is_no_error(world: World) -> None:
    filler = Scripted(concurrency=3)
    filler.fault_at = 11
    run = world.run(filler, batch=6)
    filler.after[10] = run.stop
    tally = await run.go()
    assert tally.stopped
    assert len(tally.cached) < 20


async def test_a_run_where_everything_fails_gives_up(tmp_path: Path) -> None:
    world = World(tmp_path, n=300)
    filler = Scripted(fails=dict.fromkeys(world.plan.queries, 9))
    with pytest.raises(PrecomputeError, match="no luck"):
        await world.run(filler).go()
    assert len(filler.filled) < 100
    assert world.noted() == set()


async def test_a_fault_of_ours_is_not_hidden(world: World) -> None:
    class Broken(Scripted):
        def _one(self, query: str) -> Outcome:
            raise KeyError(query)

    with pytest.raises(ExceptionGroup) as caught:
        await world.run(Broken()).go()
    assert isinstance(caught.value.exceptions[0], KeyError)


def test_a_pace_leaves_room_between_queries_but_makes_up_for_nothing() -> None:
    now = 100.0
    pace = Pace(2.0, clock=lambda: now)
    assert [pace.take(4), pace.take(2)] == [0, 2]
    now = 102.5
    assert pace.take(1) == pytest.approx(0.5)
    now = 200.0
    assert [pace.take(1), pace.take(1)] == [0, 0.5]
    assert [Pace(None).take(9) for _ in range(3)] == [0, 0, 0]


async def test_a_run_that_waits_for_its_pace_stops_at_once(world: World) -> None:
    filler = Scripted(size=2, concurrency=1)
    run = world.run(filler, pace=Pace(0.001))
    filler.after[2] = run.stop
    async with asyncio.timeout(100):
        tally = await run.go()
    assert filler.calls == [2]
    assert tally.cached == {0, 1}
