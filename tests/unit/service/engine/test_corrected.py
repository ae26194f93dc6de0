"""Corrections among the candidates of an engine that says what it was told to."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing

import pytest

from model_store.manifest import FilterSpec
from service.candidates import Generation, Verdict
from service.engine.corrected import VOTES, CorrectedEngine
from service.engine.errors import EngineUnavailable, QueryTooLong
from service.engine.protocol import Candidate, Engine
from service.filters import CandidateFilter
from service.spelling import Corrector
from tests.support.engine import ScriptedEngine, candidates

CORRECTOR = Corrector({"steel": 9, "stake": 9, "metal": 9})
SCRIPT = [("metal stake", 0.98), ("stake", 0.7)]
CORRECTION = Candidate("steel stake", (), 0.93)


def corrected(engine: Engine) -> CorrectedEngine:
    return CorrectedEngine(engine, CORRECTOR)


def scripted(**options: object) -> ScriptedEngine:
    return ScriptedEngine(default=SCRIPT, tag=lambda _q, _r: 0.93, **options)  # type: ignore[arg-type]


async def said(engine: Engine, query: str) -> list[Candidate]:
    return [candidate async for candidate in engine.generate(query)]


async def test_a_correction_is_tagged_and_counts_for_several() -> None:
    engine = scripted()
    found = await said(corrected(engine), "steele stake")
    assert sorted(found, key=lambda c: c.text) == sorted(
        [*candidates(SCRIPT), *[CORRECTION] * VOTES], key=lambda c: c.text
    )
    assert engine.tagged == [("steele stake", "steel stake")]
    assert engine.generated == ["steele stake"]


async def test_what_is_rightly_spelt_costs_nothing() -> None:
    engine = scripted()
    assert await said(corrected(engine), "steel stake") == candidates(SCRIPT)
    assert engine.tagged == []


async def test_what_nothing_is_known_for_is_left_to_the_model() -> None:
    engine = scripted()
    assert await said(corrected(engine), "qwertyuiop stake") == candidates(SCRIPT)
    assert engine.tagged == []


async def test_the_correction_does_not_wait_for_the_model() -> None:
    class Slow(ScriptedEngine):
        async def tag(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
            return [0.93 for _ in pairs]

    engine = Slow(default=SCRIPT, held=True, held_from=0)
    async with aclosing(corrected(engine).generate("steele stake")) as stream:
        assert [await anext(stream) for _ in range(VOTES)] == [CORRECTION] * VOTES
        engine.release()
        assert [candidate async for candidate in stream] == candidates(SCRIPT)


async def test_the_model_does_not_wait_for_the_correction() -> None:
    class SlowToTag(ScriptedEngine):
        may_tag = asyncio.Event()

        async def tag(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
            await self.may_tag.wait()
            return [0.93 for _ in pairs]

    engine = SlowToTag(default=SCRIPT)
    async with aclosing(corrected(engine).generate("steele stake")) as stream:
        assert [await anext(stream) for _ in SCRIPT] == candidates(SCRIPT)
        engine.may_tag.set()
        assert [candidate async for candidate in stream] == [CORRECTION] * VOTES


@pytest.mark.parametrize("taken", [0, 1])
async def test_closing_early_leaves_nothing_under_way(taken: int) -> None:
    engine = scripted(held=True, held_from=1)
    async with aclosing(corrected(engine).generate("steele stake")) as stream:
        for _ in range(taken):
            await anext(stream)
    assert engine.outstanding == 0
    assert engine.closed_streams == taken


async def test_a_cancelled_caller_leaves_nothing_under_way() -> None:
    engine = scripted(held=True, held_from=0)
    task = asyncio.create_task(said(corrected(engine), "steele stake"))
    await engine.reached_hold.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert engine.outstanding == 0
    assert engine.closed_streams == 1


async def test_a_lost_engine_is_told() -> None:
    engine = scripted(held=True, held_from=1)
    task = asyncio.create_task(said(corrected(engine), "steele stake"))
    await engine.reached_hold.wait()
    engine.die()
    with pytest.raises(EngineUnavailable):
        await task
    assert engine.outstanding == 0


async def test_a_pair_that_is_too_long_leaves_the_model_alone() -> None:
    class NoPairs(ScriptedEngine):
        async def tag(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
            raise QueryTooLong("too long")

    assert await said(corrected(NoPairs(default=SCRIPT)), "steele stake") == candidates(SCRIPT)


async def test_among_good_candidates_it_comes_first_and_a_bad_one_is_dropped() -> None:
    accept = CandidateFilter(FilterSpec(min_relevance=0.9, max_rewrites=1), fold_case=True)
    for relevance, expected in ((0.93, "steel stake"), (0.6, "metal stake")):
        engine = ScriptedEngine(default=SCRIPT, tag=lambda _q, _r, p=relevance: p)  # type: ignore[misc]
        generation = Generation.of(await said(corrected(engine), "steele stake"))
        chosen = accept.select(accept.judge("steele stake", generation.candidates))
        assert [one.text for one in chosen.accepted] == [expected]
        verdicts = [one.verdict for one in chosen.rejected if one.text == "steel stake"]
        assert verdicts.count(Verdict.DUPLICATE) == VOTES - 1


async def test_all_else_is_the_engines() -> None:
    engine = scripted()
    outer = corrected(engine)
    await outer.start()
    engine.progress, engine.effort, engine.outstanding = 3, 1.5, 2
    assert (outer.healthy, outer.progress, outer.effort, outer.outstanding) == (True, 3, 1.5, 2)
    engine.outstanding = 0
    assert await outer.tag([("a", "b")]) == [0.93]
    await outer.close()
    assert engine.closed
    assert not outer.healthy
