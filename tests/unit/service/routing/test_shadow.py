"""Shadow traffic: compared in the gaps, dropped otherwise, never in the way."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
import structlog
from prometheus_client import CollectorRegistry

from service.routing.document import ShadowTraffic
from service.routing.metrics import SHADOW_RESULTS, Comparison, ShadowMetrics
from service.routing.shadow import Shadow
from tests.support.waiting import turns, until


class World:
    """Shadow traffic to ``new``, whose answers the test holds back or breaks."""

    def __init__(self) -> None:
        self.wanted: ShadowTraffic | None = ShadowTraffic(version="new", share=1.0)
        self.foreground = 0
        self.asked: list[tuple[str, str]] = []
        self.cancelled = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.fault: Exception | None = None
        self.drawn = 0.0
        self.registry = CollectorRegistry()
        self.metrics = ShadowMetrics(self.registry)
        self.shadow: Shadow

    def open(self, **options: Any) -> None:
        self.shadow = Shadow(
            wanted=lambda: self.wanted,
            generate=self.generate,
            foreground=lambda: self.foreground,
            metrics=self.metrics,
            draw=lambda: self.drawn,
            **({"check_s": 0.001} | options),
        )
        self.shadow.start()

    async def generate(self, version: str, query: str) -> Sequence[str]:
        self.asked.append((version, query))
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if self.fault is not None:
            raise self.fault
        return ("steel stake", "metal stake", "tent peg")

    def offer(self, query: str = "steele stake", *, version: str = "old") -> None:
        self.shadow.offer(
            query=query, served=("steel stake", "iron stake"), version=version, request_id="r-1"
        )

    def count(self, result: str) -> float:
        labels = {"version": "new", "result": result}
        return self.registry.get_sample_value("requery_shadow_total", labels) or 0.0

    @property
    def counts(self) -> dict[str, float]:
        return {result: n for result in SHADOW_RESULTS if (n := self.count(result))}


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    world.open()
    yield world
    await world.shadow.close()


async def test_the_candidate_is_compared_with_what_was_served(world: World) -> None:
    with structlog.testing.capture_logs() as lines:
        world.offer()
        await until(lambda: world.counts == {"compared": 1})
    assert world.asked == [("new", "steele stake")]
    (line,) = lines
    assert (line["event"], line["request_id"]) == ("shadow", "r-1")
    assert (line["version"], line["candidate"]) == ("old", "new")
    assert (line["rewrites"], line["candidate_rewrites"], line["common"]) == (2, 3, 1)
    sample = world.registry.get_sample_value
    assert sample("requery_shadow_overlap_sum", {"version": "new"}) == 1 / 4
    assert sample("requery_shadow_rewrites_total", {"version": "new", "side": "candidate"}) == 3


async def test_what_does_not_fit_in_the_queue_is_dropped(world: World) -> None:
    await world.shadow.close()
    world.open(max_queued=2)
    world.gate.clear()
    world.offer("first")
    await until(lambda: len(world.asked) == 1)
    for i in range(5):
        world.offer(str(i))
    assert world.counts == {"dropped_full": 3}
    world.gate.set()
    await until(lambda: world.count("compared") == 3)
    assert [query for _, query in world.asked] == ["first", "0", "1"]


async def test_one_is_generated_at_a_time(world: World) -> None:
    world.gate.clear()
    world.offer("first")
    world.offer("second")
    await until(lambda: bool(world.asked))
    await turns()
    assert len(world.asked) == 1


async def test_nothing_is_taken_while_shoppers_wait_for_generations(world: World) -> None:
    world.foreground = 1
    world.offer()
    await turns()
    assert (world.counts, world.asked) == ({"dropped_busy": 1}, [])


async def test_nothing_is_begun_once_shoppers_wait_for_generations(world: World) -> None:
    world.offer()
    world.foreground = 1
    await until(lambda: world.counts == {"dropped_busy": 1})
    assert world.asked == []


async def test_a_generation_is_broken_off_when_a_shopper_comes(world: World) -> None:
    world.gate.clear()
    world.offer()
    await until(lambda: bool(world.asked))
    world.foreground = 1
    await until(lambda: world.counts == {"broken_off": 1})
    assert world.cancelled == 1


async def test_a_device_with_room_may_do_both(world: World) -> None:
    await world.shadow.close()
    world.open(max_foreground=3)
    world.foreground = 3
    world.offer()
    await until(lambda: world.counts == {"compared": 1})


async def test_a_candidate_that_takes_too_long_is_given_up(world: World) -> None:
    await world.shadow.close()
    world.open(timeout_s=0.01)
    world.gate.clear()
    world.offer()
    await until(lambda: world.counts == {"timeout": 1})
    assert world.cancelled == 1


async def test_a_candidate_that_fails_is_only_counted(world: World) -> None:
    world.fault = RuntimeError("engine died")
    with structlog.testing.capture_logs() as lines:
        world.offer()
        await until(lambda: world.counts == {"failed": 1})
    assert [line["log_level"] for line in lines] == ["debug"]
    world.fault = None
    world.offer()
    await until(lambda: world.count("compared") == 1)


@pytest.mark.parametrize(("drawn", "asked"), [(0.0, 1), (0.0999, 1), (0.1, 0), (0.999, 0)])
async def test_the_share_says_how_many_are_sampled(world: World, drawn: float, asked: int) -> None:
    world.wanted = ShadowTraffic(version="new", share=0.1)
    world.drawn = drawn
    world.offer()
    await turns()
    assert len(world.asked) == asked


async def test_without_shadow_traffic_nothing_happens(world: World) -> None:
    world.wanted = None
    world.offer()
    await turns()
    assert (world.asked, world.counts) == ([], {})


async def test_a_candidate_is_not_compared_with_itself(world: World) -> None:
    world.offer(version="new")
    await turns()
    assert world.asked == []


async def test_closing_breaks_off_what_is_under_way(world: World) -> None:
    world.gate.clear()
    world.offer()
    await until(lambda: bool(world.asked))
    await world.shadow.close()
    await world.shadow.close()
    assert world.cancelled == 1


@pytest.mark.parametrize(
    ("served", "candidate", "overlap"),
    [((), (), 1.0), (("a",), (), 0.0), (("a", "b"), ("b", "a"), 1.0), (("a", "b"), ("b",), 0.5)],
)
def test_the_overlap_is_what_both_gave_of_what_either_gave(
    served: tuple[str, ...], candidate: tuple[str, ...], overlap: float
) -> None:
    assert Comparison.of(served, candidate).overlap == overlap
