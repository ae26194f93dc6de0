"""Corrections among the candidates of an engine that says what it was told to."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from model_store.errors import InvalidVersion
from model_store.manifest import FilterSpec
from service.engine.corrected import VOTES, CorrectedEngine
from service.engine.errors import EngineUnavailable, QueryTooLong
from service.engine.protocol import Candidate, Engine
from service.engine.spelling import Corrector
from service.engine.synonyms import Synonyms, write_synonyms
from service.filtering.candidates import Verdict
from service.filtering.filters import CandidateFilter
from service.filtering.generation import Generation
from tests.support.engine import ScriptedEngine, candidates

CORRECTOR = Corrector({"steel": 9, "stake": 9, "metal": 9})
SCRIPT = [("metal stake", 0.98), ("stake", 0.7)]
OF_CORRECTION = [("steel post", 0.9), ("metal stakes", 0.8), ("steel post", 0.7)]
CORRECTION = Candidate("steel stake", (), 0.93, VOTES)
TAGS = {"steel stake": 0.93, "steel post": 0.6, "metal stakes": 0.4}


def corrected(engine: Engine, trust: float = 0.0) -> CorrectedEngine:
    return CorrectedEngine(engine, CORRECTOR, trust)


def scripted(tags: Mapping[str, float] = TAGS, **options: Any) -> ScriptedEngine:
    return ScriptedEngine(
        {"steel stake": OF_CORRECTION},
        default=SCRIPT,
        tag=lambda query, rewrite: tags[rewrite] if query == "steeel stake" else 0.01,
        **options,
    )


async def said(engine: Engine, query: str) -> list[Candidate]:
    return [candidate async for candidate in engine.generate(query)]


def texts(found: Sequence[Candidate]) -> list[tuple[str, float | None]]:
    return sorted((c.text, c.relevance) for c in found)


async def test_a_believed_correction_is_what_the_model_writes_of() -> None:
    engine = scripted()
    found = await said(corrected(engine), "steeel stake")
    assert engine.generated == ["steel stake"]
    assert found[0] == CORRECTION
    # Tagged for what was typed, each text once.
    assert texts(found[1:]) == [("metal stakes", 0.4), ("steel post", 0.6), ("steel post", 0.6)]
    assert sorted(engine.tagged) == sorted(("steeel stake", text) for text in TAGS)


async def test_of_one_that_is_not_believed_the_model_does_not_write() -> None:
    engine = scripted({"steel stake": 0.49})
    found = await said(corrected(engine), "steeel stake")
    assert engine.generated == ["steeel stake"]
    assert found == [Candidate("steel stake", (), 0.49, VOTES), *candidates(SCRIPT)]
    assert engine.tagged == [("steeel stake", "steel stake")]


async def test_trust_raises_the_log_odds_of_proposals_alone() -> None:
    # 0.2 are odds of 1 : 4; trust of ln 16 makes them 4 : 1.
    engine = scripted(TAGS | {"steel stake": 0.2})
    outer = corrected(engine, math.log(16))
    found = await said(outer, "steeel stake")
    assert engine.generated == ["steel stake"]
    assert found[0].text == "steel stake"
    assert found[0].relevance == pytest.approx(0.8)
    assert texts(found[1:])[0] == ("metal stakes", 0.4)
    pairs = [("steeel stake", "steel stake"), ("steeel stake", "steel post"), ("stake", "a")]
    assert await outer.tag(pairs) == [pytest.approx(0.8), 0.6, 0.01]


@pytest.mark.parametrize("relevance", [0.0, 1.0])
async def test_certainty_stays_certainty(relevance: float) -> None:
    outer = corrected(scripted({"steel stake": relevance}), trust=3.0)
    assert await outer.tag([("steeel stake", "steel stake")]) == [relevance]


async def test_the_correction_written_again_is_worth_what_it_was() -> None:
    engine = scripted({"steel stake": 0.2})
    engine.script = {"steel stake": [("steel stake", 0.9)]}
    found = await said(corrected(engine, math.log(16)), "steeel stake")
    assert [c.relevance for c in found] == [pytest.approx(0.8)] * 2


async def test_what_has_no_end_has_no_tag() -> None:
    engine = scripted()
    engine.script = {"steel stake": [("steel steel steel", None)]}
    found = await said(corrected(engine), "steeel stake")
    assert [c.relevance for c in found if c.text == "steel steel steel"] == [None]
    assert engine.tagged == [("steeel stake", "steel stake")]


async def test_what_is_rightly_spelt_costs_nothing() -> None:
    engine = scripted()
    assert await said(corrected(engine), "steel stake") == candidates(OF_CORRECTION)
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
    async with aclosing(corrected(engine).generate("steeel stake")) as stream:
        assert await anext(stream) == CORRECTION
        engine.release()
        rest = [candidate async for candidate in stream]
        assert texts(rest) == [("metal stake", 0.93), ("stake", 0.93)]


async def test_a_candidate_is_given_when_it_is_tagged() -> None:
    class Tagging(ScriptedEngine):
        async def tag(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
            return [0.93 for _ in pairs]

    engine = Tagging(default=SCRIPT, held=True, held_from=1)
    async with aclosing(corrected(engine).generate("steeel stake")) as stream:
        first = [await anext(stream) for _ in range(2)]
        assert first[-1].text == "metal stake"
        engine.release()
        assert [c.text async for c in stream] == ["stake"]


class Patient(ScriptedEngine):
    """Writes when it may, and tags the correction at once and others when it may."""

    def __init__(self, **options: Any) -> None:
        super().__init__(default=SCRIPT, **options)
        self.may_tag = asyncio.Event()
        self.both_tagging = asyncio.Event()
        self.tagging = 0

    async def tag(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        if pairs[0][1] == "steel stake":
            return [0.93]
        self.tagging += 1
        if self.tagging == len(SCRIPT):
            self.both_tagging.set()
        try:
            await self.may_tag.wait()
        finally:
            self.tagging -= 1
        if not self.healthy:
            raise EngineUnavailable("the engine has stopped; try again shortly")
        return [0.5 for _ in pairs]


@pytest.mark.parametrize("taken", [0, 1])
async def test_closing_early_leaves_nothing_under_way(taken: int) -> None:
    engine = Patient(held=True, held_from=1)
    async with aclosing(corrected(engine).generate("steeel stake")) as stream:
        for _ in range(taken):
            await anext(stream)
    assert (engine.outstanding, engine.tagging) == (0, 0)
    assert engine.closed_streams == len(engine.generated)


@pytest.mark.parametrize("held_from", [0, 1])
async def test_a_cancelled_caller_leaves_nothing_under_way(held_from: int) -> None:
    engine = Patient(held=True, held_from=held_from)
    task = asyncio.create_task(said(corrected(engine), "steeel stake"))
    await engine.reached_hold.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (engine.outstanding, engine.tagging) == (0, 0)
    assert engine.closed_streams == 1


@pytest.mark.parametrize("writes", [True, False])
async def test_an_engine_lost_while_it_writes_or_tags_is_told(writes: bool) -> None:
    engine = Patient(held=writes, held_from=1)
    task = asyncio.create_task(said(corrected(engine), "steeel stake"))
    await (engine.reached_hold if writes else engine.both_tagging).wait()
    engine.die()
    engine.may_tag.set()
    with pytest.raises(EngineUnavailable):
        await task
    assert (engine.outstanding, engine.tagging) == (0, 0)


async def test_a_pair_that_is_too_long_leaves_the_model_alone() -> None:
    class NoPairs(ScriptedEngine):
        async def tag(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
            raise QueryTooLong("too long")

    engine = NoPairs(default=SCRIPT)
    assert await said(corrected(engine), "steeel stake") == candidates(SCRIPT)
    assert engine.generated == ["steeel stake"]


async def test_among_good_candidates_it_comes_first_and_a_bad_one_is_dropped() -> None:
    accept = CandidateFilter(FilterSpec(min_relevance=0.9, max_rewrites=1), fold_case=True)
    for relevance, expected in ((0.93, "steel stake"), (0.4, "metal stake")):
        engine = ScriptedEngine(default=SCRIPT, tag=lambda _q, _r, p=relevance: p)  # type: ignore[misc]
        generation = Generation.of(await said(corrected(engine), "steeel stake"))
        chosen = generation.default_selection("steeel stake", accept)
        assert [one.text for one in chosen.accepted] == [expected]


async def test_the_correction_stands_once_with_its_votes() -> None:
    engine = scripted()
    engine.script = {"steel stake": [("steel stake", 0.9), ("steel post", 0.9)] * 4}
    generation = Generation.of(await said(corrected(engine), "steeel stake"))
    assert [(one.text, one.votes) for one in generation.candidates] == [
        ("steel stake", VOTES + 4), *[("steel post", 1)] * 4,
    ]  # fmt: skip
    judged = generation.verdicts("steeel stake", CandidateFilter(FilterSpec(), fold_case=True))
    (correction,) = (one for one in judged if one.text == "steel stake")
    assert (correction.verdict, correction.agreement) == (Verdict.ACCEPTED, VOTES + 4)


async def test_all_else_is_the_engines() -> None:
    engine = scripted()
    outer = corrected(engine)
    await outer.start()
    engine.progress, engine.effort, engine.outstanding = 3, 1.5, 2
    assert (outer.healthy, outer.progress, outer.effort, outer.outstanding) == (True, 3, 1.5, 2)
    engine.outstanding = 0
    assert await outer.tag([("a", "b")]) == [0.01]
    await outer.close()
    assert engine.closed
    assert not outer.healthy


async def test_synonyms_are_tagged_while_the_model_writes() -> None:
    engine = ScriptedEngine(default=SCRIPT, tag=lambda _, text: {"iron stake": 0.5}.get(text, 0.2))
    synonyms = Synonyms({"steel": ["iron"], "steel stake": ["tent peg"], "stake": ["post"]})
    wrapped = CorrectedEngine(engine, CORRECTOR, 1.9, synonyms)
    assert texts(await said(wrapped, "metal steel stake")) == [
        ("metal stake", 0.98),
        ("metal tent peg", pytest.approx(1 / (1 + math.exp(-1.9) * 4))),
        ("stake", 0.7),
    ]
    assert texts(await said(wrapped, "steel"))[0][0] == "iron"
    assert texts(await said(wrapped, "metal")) == texts(candidates(SCRIPT))
    assert engine.tagged == [("metal steel stake", "metal tent peg"), ("steel", "iron")]


async def test_synonyms_that_are_too_long_to_tag_are_left_out() -> None:
    def too_long(query: str, text: str) -> float:
        raise QueryTooLong("too long")

    engine = ScriptedEngine(default=SCRIPT, tag=too_long)
    wrapped = CorrectedEngine(engine, CORRECTOR, 0.0, Synonyms({"steel": ["iron"]}))
    assert texts(await said(wrapped, "steel")) == texts(candidates(SCRIPT))


@pytest.mark.parametrize("line", ["steel", "steel\t", "\tiron"])
def test_a_malformed_file_of_synonyms(line: str, tmp_path: Path) -> None:
    write_synonyms({"soda": ["soft drink", "pop"]}, tmp_path / "s.txt")
    assert Synonyms.read(tmp_path / "s.txt")("diet soda") == ["diet soft drink", "diet pop"]
    (tmp_path / "s.txt").write_text(f"a\tb\n{line}\n")
    with pytest.raises(InvalidVersion, match="line 2 is not a term and others"):
        Synonyms.read(tmp_path / "s.txt")
