"""Real engines without all or some of what the service adds inside the engine core."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict

from service.engine.loading import EngineSettings, load_engine
from service.engine.vllm import VllmEngine
from tests.integration.conftest import START_SECONDS, Served
from tests.support.changed_worker import ChangedWorker

pytestmark = [
    pytest.mark.integration,
    pytest.mark.asyncio(loop_scope="session"),
    pytest.mark.timeout(360),
]

PAIRS = [
    (query, rewrite)
    for query in ("steele stake", "3/4 in. pvc pipe", "led")
    for rewrite in ("steel stake", "pvc pipe 3/4 inch", "led bulb", "area rug")
]


@asynccontextmanager
async def running(engine: VllmEngine) -> AsyncIterator[list[EventDict]]:
    """Run an engine for a block; what it logged at its start."""
    with warnings.catch_warnings(), capture_logs() as events:
        # Importing vLLM and torch sets off deprecations among themselves.
        warnings.simplefilter("ignore")
        await asyncio.wait_for(engine.start(), START_SECONDS)
    try:
        yield events
    finally:
        await engine.close()


async def answers_like(served: Served, engine: VllmEngine) -> bool:
    """Whether an engine answers like one with the whole extension, but for rounding."""
    tags, expected = await asyncio.gather(engine.tag(PAIRS), served.engine.tag(PAIRS))
    assert tags == pytest.approx(expected, abs=0.06)
    found = [candidate async for candidate in engine.generate("steele stake")]
    assert len(found) == len(served.manifest.decoding.temperatures)
    tagged = [candidate for candidate in found if candidate.relevance is not None]
    prompts = [served.prompts.tag_prompt("steele stake", one.token_ids) for one in tagged]
    alone = await served.engine.tag_ids(prompts)
    assert [one.relevance for one in tagged] == pytest.approx(alone, abs=0.06)
    assert len(tagged) >= len(found) / 2
    return max(tags) - min(tags) > 0.5


async def test_plain_vllm_answers_rightly(served: Served) -> None:
    engine = load_engine(served.manifest, served.folder, EngineSettings(extensions=False))
    async with running(engine) as events:
        assert [e["event"] for e in events if e["log_level"] == "warning"] == []
        assert engine.core_pid is not None
        assert engine.effort > 0
        assert await answers_like(served, engine)


async def test_a_changed_vllm_answers_rightly_and_is_told_once(served: Served) -> None:
    engine = load_engine(served.manifest, served.folder)
    changed = f"{ChangedWorker.__module__}.{ChangedWorker.__qualname__}"
    engine._arguments["worker_extension_cls"] = changed
    async with running(engine) as events:
        (warning,) = [event for event in events if event["log_level"] == "warning"]
        assert warning["event"] == "engine_slower"
        assert warning["reason"].keys() == {"label_logits", "shared_rows"}
        assert await engine._llm.collective_rpc("given_up") == [warning["reason"]]
        assert await answers_like(served, engine)
