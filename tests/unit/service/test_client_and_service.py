"""The client against the real server and application, on a scripted engine."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import pytest

from service.client import Answer, AsyncRequery, Rejected, Requery, Rewrite, Unavailable
from service.security.api_keys import entry, new_key
from tests.support.engine import ScriptedEngine
from tests.support.http_server import Listening, listening

STAKES = (Rewrite("steel stake", 0.98), Rewrite("metal stake", 0.91))
PATIENCE_MS = 60_000
"""Longer than any answer takes, however busy the machine is."""


def client(service: Listening, *, deadline_ms: int = PATIENCE_MS) -> AsyncRequery:
    return AsyncRequery(f"http://127.0.0.1:{service.port}", deadline_ms=deadline_ms)


async def test_a_query_is_rewritten_and_then_comes_from_memory() -> None:
    async with listening() as service, client(service) as requery:
        first = await requery.rewrite("steele stake", request_id="from-a-shop")
        assert first == Answer(
            "steele stake", STAKES, "ok", "engine", None, "test-1", "from-a-shop"
        )
        assert (await requery.rewrite("steele stake", max_rewrites=1)).rewrites == STAKES[:1]
        assert (await requery.rewrite("Steele  Stake")).source == "memory"


async def test_all_calls_share_connections() -> None:
    async with listening() as service, client(service) as requery:
        for query in ("a rug", "b rug", "c rug"):
            await requery.rewrite(query)
        assert len(service.state.connections) == 1


async def test_a_batch_and_relevance() -> None:
    engine = ScriptedEngine(tag=lambda _query, rewrite: 0.9 if rewrite == "steel stake" else 0.1)
    async with listening(engine) as service, client(service) as requery:
        good, empty = await requery.rewrite_batch(["steele stake", " "])
        assert good.rewrites == STAKES
        assert empty == Answer(" ", status="none", reason="invalid-query")
        pairs = [("steele stake", "steel stake"), ("steele stake", "beef steak")]
        assert await requery.relevance(pairs) == (0.9, 0.1)


async def test_the_service_says_what_is_ready_at_the_deadline() -> None:
    async with listening(ScriptedEngine(held=True)) as service, client(service) as requery:
        # The client would wait for longer: it is the service that keeps to the body's deadline.
        answer = await requery.rewrite("steele stake", deadline_ms=500)
        assert answer.status == "partial"
        assert answer.rewrites == STAKES[:1]


async def test_a_service_that_is_loading_falls_back() -> None:
    engine = ScriptedEngine()
    engine.may_start.clear()
    async with listening(engine, ready=False) as service, client(service) as requery:
        answer = await requery.rewrite("steele stake")
        assert (answer.status, answer.rewrites, answer.reason) == ("fallback", (), None)
        with pytest.raises(Unavailable, match="engine-unavailable"):
            await requery.relevance([("a", "b")])
        engine.may_start.set()


async def test_mistakes_are_told_in_the_words_of_the_service() -> None:
    async with listening() as service, client(service) as requery:
        with pytest.raises(Rejected, match="none-such") as unknown:
            await requery.rewrite("rug", model_version="none-such")
        assert (unknown.value.status, unknown.value.slug) == (404, "unknown-version")
        with pytest.raises(Rejected, match="max_rewrites") as wrong:
            await requery.rewrite("rug", max_rewrites=99)
        assert (wrong.value.status, wrong.value.slug) == (422, "invalid-request")


@pytest.mark.parametrize("text", ["", " \t", "x" * 257, "y" * 70_000, "\ud800"])
async def test_no_text_of_a_shopper_raises(text: str) -> None:
    async with listening() as service, client(service) as requery:
        answer = await requery.rewrite(text)
        assert answer.status in ("ok", "none")


async def test_with_keys(tmp_path: Path) -> None:
    key, other = new_key(), new_key()
    keys = tmp_path / "keys.yaml"
    keys.write_text(entry("shop", key, ["rewrite"]) + entry("prometheus", other, ["metrics"]))
    async with listening(api_keys_file=keys) as service:
        url = f"http://127.0.0.1:{service.port}"
        for given, slug in ((key, None), (other, "forbidden"), (None, "unauthorized")):
            async with AsyncRequery(url, api_key=given, deadline_ms=PATIENCE_MS) as requery:
                if slug is None:
                    assert (await requery.rewrite("steele stake")).rewrites == STAKES
                    continue
                with pytest.raises(Rejected) as refused:
                    await requery.rewrite("steele stake")
                assert refused.value.slug == slug


async def test_without_async_it_is_the_same() -> None:
    async with listening() as service:
        with Requery(f"http://127.0.0.1:{service.port}", deadline_ms=PATIENCE_MS) as requery:
            answer = await asyncio.to_thread(requery.rewrite, "steele stake")
            assert answer.rewrites == STAKES
            judge = partial(requery.relevance, [("a", "b")])
            assert await asyncio.to_thread(judge) == (0.5,)
            # Closing waits for the thread, not for this loop.
