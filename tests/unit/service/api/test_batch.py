"""POST /rewrite/batch against the documented schema."""

from __future__ import annotations

from typing import Any

from structlog.testing import capture_logs

from service.api.schemas import BatchProblem, BatchResponse, RewriteResponse
from service.pipeline.batch import MAX_BATCH
from tests.support.engine import ScriptedEngine
from tests.support.service import Serve, Service


async def batch(service: Service, queries: list[Any], **fields: Any) -> list[dict[str, Any]]:
    response = await service.client.post("/rewrite/batch", json={"queries": queries, **fields})
    assert response.status_code == 200, response.text
    content = response.json()
    BatchResponse.model_validate(content)
    assert content["request_id"] == response.headers["x-request-id"]
    answers: list[dict[str, Any]] = content["answers"]
    assert len(answers) == len(queries)
    return answers


async def test_each_query_has_the_answer_that_it_would_have_alone(service: Service) -> None:
    service.engine.script = {"pipe": [("tube", 0.9)]}
    alone = await service.rewrite("pipe")
    answers = await batch(service, ["Steele  STAKE", {"query": "pipe", "unit_id": "u-1"}])
    for answer in answers:
        RewriteResponse.model_validate(answer)
    assert [answer["query"] for answer in answers] == ["steele stake", "pipe"]
    assert answers[1]["rewrites"] == alone["rewrites"]
    assert [answer["source"] for answer in answers] == ["engine", "memory"]


async def test_an_invalid_query_gets_a_problem_and_the_others_their_answers(
    service: Service,
) -> None:
    queries = ["a stake", " ", 7, {"query": "x", "deadline_ms": 5}, "x" * 300, "b stake"]
    answers = await batch(service, [*queries, {"query": "c", "model_version": "nobody"}])
    assert [answer.get("index") for answer in answers] == [None, 1, 2, 3, 4, None, 6]
    problems = [BatchProblem.model_validate(answers[i]) for i in (1, 2, 3, 4, 6)]
    assert [problem.status for problem in problems] == [422, 422, 422, 422, 404]
    fields = [problem.errors[0].field for problem in problems if problem.errors]
    assert fields == ["query", "query", "deadline_ms", "query"]
    assert [answers[i]["status"] for i in (0, 5)] == ["ok", "ok"]


async def test_equal_queries_make_one_generation(service: Service) -> None:
    answers = await batch(service, ["a stake", "A  stake", "a stake"])
    assert service.engine.generated == ["a stake"]
    assert all(answer["rewrites"] == answers[0]["rewrites"] for answer in answers)


async def test_options_are_shared_and_explained(serve: Serve) -> None:
    script = [("steel stake", 0.9), ("metal stake", 0.8), ("wood", 0.1)]
    service = await serve(ScriptedEngine(default=script))
    answers = await batch(service, ["a", "b"], max_rewrites=1, min_relevance=0.85, explain=True)
    for answer in answers:
        assert [one["text"] for one in answer["rewrites"]] == ["steel stake"]
        assert [one["reason"] for one in answer["rejected"]] == ["irrelevant", "irrelevant"]
        assert set(answer["stages_ms"]) == {"prepare", "cache", "admit", "generate", "filter"}


async def test_what_is_not_done_by_the_deadline_is_a_timeout(serve: Serve) -> None:
    service = await serve(ScriptedEngine(held=True, held_from=0))
    # More than are answered at a time: the last have had no turn when the deadline passes.
    answers = await batch(service, [f"Query {i}" for i in range(30)], deadline_ms=50)
    assert {answer["status"] for answer in answers} == {"timeout"}
    assert {answer["model_version"] for answer in answers} == {"test-1"}
    assert answers[-1]["query"] == "query 29"
    RewriteResponse.model_validate(answers[-1])
    begun = len(service.engine.generated)
    service.engine.release()
    await service.idle()
    assert len(service.engine.generated) == begun < 30
    # ... and what was begun went on to fill the cache.
    assert (await service.rewrite("query 0"))["source"] == "memory"


async def test_what_is_cached_is_answered_even_behind_slow_ones(serve: Serve) -> None:
    service = await serve(ScriptedEngine(held=True, held_from=0))
    service.engine.release()
    await service.rewrite("stake")
    await service.idle()
    service.engine.hold()
    queries = [f"nail {chr(97 + i)}" for i in range(20)]
    answers = await batch(service, [*queries, "stake"], deadline_ms=50)
    assert {answer["status"] for answer in answers[:-1]} == {"timeout"}
    assert (answers[-1]["status"], answers[-1]["source"]) == ("ok", "memory")
    service.engine.release()


async def test_as_many_as_promised_are_taken_and_no_more(service: Service) -> None:
    # Three bytes a character.
    long = "\u5927" * 200
    queries = [long + chr(0x4E00 + i) for i in range(MAX_BATCH)]
    answers = await batch(service, queries)
    assert {answer["status"] for answer in answers} == {"ok"}
    for wrong in ([], [*queries, "one more"]):
        response = await service.client.post("/rewrite/batch", json={"queries": wrong})
        assert response.status_code == 422
        assert response.json()["errors"][0]["field"] == "queries"


async def test_the_access_line_counts_and_names_no_query(service: Service) -> None:
    with capture_logs() as lines:
        await batch(service, ["a stake", "a stake", ""])
    (line,) = [line for line in lines if line.get("route") == "/rewrite/batch"]
    assert "stake" not in str(line)
    assert line["queries"] == 3
    assert line["outcomes"] == {"ok": 2, "problem": 1}
