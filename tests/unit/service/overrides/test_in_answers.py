"""What an override does to the answers of a whole service."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from service.api.schemas import RewriteResponse
from service.config.watched_file import FileInvalid
from tests.support.engine import ScriptedEngine
from tests.support.overrides import block, pin, term
from tests.support.service import Serve, Service

SCRIPT = [("steel stake", 0.98), ("metal stake", 0.91), ("iron rod", 0.9), ("wood", 0.1)]


@pytest.fixture
async def service(serve: Serve) -> Service:
    return await serve(ScriptedEngine(default=SCRIPT))


async def override(service: Service, content: dict[str, Any]) -> str:
    response = await service.client.post("/overrides", json=content)
    assert response.status_code == 201, response.text
    return str(response.json()["id"])


def texts(answer: dict[str, Any]) -> list[str]:
    RewriteResponse.model_validate(answer)
    return [one["text"] for one in answer["rewrites"]]


async def test_a_blocked_query_has_no_rewrites_until_it_is_let_go(service: Service) -> None:
    name = await override(service, block("Steele Stake"))
    response = await service.client.post("/rewrite", json={"query": "steele  STAKE"})
    answer = response.json()
    assert (texts(answer), answer["status"], answer["source"]) == ([], "none", "override")
    assert response.headers["cache-status"] == "requery; fwd=bypass"
    assert service.engine.generated == []
    assert (await service.client.delete(f"/overrides/{name}")).status_code == 204
    assert (await service.rewrite("steele stake"))["source"] == "engine"


async def test_a_pinned_query_has_the_rewrites_that_a_person_chose(service: Service) -> None:
    await service.rewrite("steele stake")
    await override(service, pin("steele stake", "Z Pole", "steele stake xl", "iron rod"))
    answer = await service.rewrite("steele stake", min_relevance=1.0, max_rewrites=2, explain=True)
    assert texts(answer) == ["Z Pole", "steele stake xl"]
    assert {one["relevance"] for one in answer["rewrites"]} == {1.0}
    assert (answer["status"], answer["source"]) == ("ok", "override")
    assert [(one["text"], one["reason"]) for one in answer["rejected"]] == [("iron rod", "surplus")]


async def test_a_blocked_term_is_kept_out_of_cached_answers_and_pins_at_once(
    service: Service,
) -> None:
    before = await service.rewrite("steele stake", max_rewrites=2)
    assert "steel stake" in texts(before)
    await override(service, pin("pinned", "steel pole", "rod"))
    await override(service, term("steel"))
    after = await service.rewrite("steele stake", max_rewrites=2, explain=True)
    assert texts(after) == ["metal stake", "iron rod"]
    assert after["source"] == "memory"
    assert {"text": "steel stake", "relevance": 0.98, "reason": "blocked_term"} in after["rejected"]
    assert texts(await service.rewrite("pinned")) == ["rod"]
    assert len(service.engine.generated) == 1
    assert await service.metric("requery_override_hits_total", kind="block_term") >= 2


async def test_overrides_hold_in_batches(service: Service) -> None:
    await override(service, block("a"))
    await override(service, pin("b", "c"))
    response = await service.client.post("/rewrite/batch", json={"queries": ["a", "b", "d"]})
    assert [one["source"] for one in response.json()["answers"]] == [
        "override", "override", "engine",
    ]  # fmt: skip


async def test_a_file_is_in_force_from_the_start_and_a_bad_one_ends_it(
    serve: Serve, tmp_path: Path
) -> None:
    path = tmp_path / "overrides.yaml"
    path.write_text("overrides: [{kind: block_query, query: a, author: ada, reason: wrong}]")
    service = await serve(ScriptedEngine(default=SCRIPT), overrides_file=path)
    assert (await service.rewrite("a"))["source"] == "override"
    listed = (await service.client.get("/overrides")).json()["overrides"]
    assert [(one["source"], one["hits"]) for one in listed] == [("file", 1)]
    path.write_text("overrides: [gun]")
    with pytest.raises(FileInvalid, match="entry 1"):
        await serve(overrides_file=path)


async def test_the_usual_answer_is_kept_and_given_to_nobody_who_asks_for_another(
    service: Service,
) -> None:
    usual = texts(await service.rewrite("steele stake"))
    assert usual == ["steel stake", "metal stake", "iron rod"]
    # Twice each, in turn: from the engine, from memory, and after answers of another kind.
    for _ in range(2):
        assert texts(await service.rewrite("steele stake")) == usual
        assert texts(await service.rewrite("steele stake", max_rewrites=1)) == usual[:1]
        strict = await service.rewrite("steele stake", min_relevance=0.95, explain=True)
        assert texts(strict) == usual[:1]
        assert [one["reason"] for one in strict["rejected"]] == ["irrelevant"] * 3
        explained = await service.rewrite("steele stake", explain=True)
        assert (texts(explained), explained["source"]) == (usual, "memory")
        assert [one["reason"] for one in explained["rejected"]] == ["irrelevant"]
        name = await override(service, term("metal"))
        assert texts(await service.rewrite("steele stake")) == ["steel stake", "iron rod"]
        await service.client.delete(f"/overrides/{name}")
