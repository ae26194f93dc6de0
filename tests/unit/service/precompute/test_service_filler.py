"""Asking a running service, and what its answers say of its cache."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest

from service.precompute.errors import PrecomputeError
from service.precompute.fillers import ServiceFiller, served_version
from service.precompute.journal import Result
from tests.support.engine import ScriptedEngine
from tests.support.service import Serve


async def results(filler: ServiceFiller, *queries: str) -> list[Result]:
    return [outcome.result for outcome in await filler.fill(queries)]


async def test_what_is_not_cached_is_generated_once(serve: Serve) -> None:
    service = await serve()
    name, digest = await served_version(service.client, None)
    assert (name, len(digest)) == ("test-1", 64)
    filler = ServiceFiller(service.client, name, size=8)
    assert await results(filler, "a stake", "b stake") == [Result.GENERATED] * 2
    assert await results(filler, "b stake", "c stake") == [Result.CACHED, Result.GENERATED]
    assert len(service.engine.generated) == 3
    assert (await service.rewrite("a stake"))["source"] == "memory"


async def test_a_query_that_can_never_be_rewritten_is_refused(serve: Serve) -> None:
    service = await serve()
    filler = ServiceFiller(service.client, "test-1", size=8)
    assert await results(filler, "x" * 300, "a stake") == [Result.REFUSED, Result.GENERATED]


async def test_what_is_late_has_failed_until_it_is_cached(serve: Serve) -> None:
    service = await serve(ScriptedEngine(held=True), max_deadline_ms=50)
    filler = ServiceFiller(service.client, "test-1", size=8)
    (outcome,) = await filler.fill(["a stake"])
    assert outcome.result is Result.FAILED
    assert "partial" in outcome.reason
    service.engine.release()
    await service.idle()
    assert await results(filler, "a stake") == [Result.CACHED]


async def test_a_version_that_is_not_served_is_said(serve: Serve) -> None:
    service = await serve()
    with pytest.raises(PrecomputeError, match=r"does not serve version grpo-1 \(ready: test-1\)"):
        await served_version(service.client, "grpo-1")
    filler = ServiceFiller(service.client, "grpo-1", size=8)
    (outcome,) = await filler.fill(["a stake"])
    assert outcome.result is Result.FAILED
    assert "grpo-1" in outcome.reason


class Away:
    """A service that gives these answers in turn; the last one for ever."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = [*answers]
        self.waits: list[float] = []
        self.asked: list[httpx.Request] = []
        self.client = httpx.AsyncClient(
            transport=httpx.MockTransport(self._answer), base_url="http://away"
        )

    def filler(self) -> ServiceFiller:
        return ServiceFiller(self.client, "test-1", size=8, sleep=self._sleep)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        answer = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _sleep(self, seconds: float) -> None:
        self.waits.append(seconds)


def answered(*answers: dict[str, Any]) -> httpx.Response:
    return httpx.Response(200, json={"answers": [*answers]})


OK = {"status": "ok", "source": "engine", "rewrites": []}


async def test_a_service_that_comes_back_is_waited_for() -> None:
    busy = httpx.Response(503, headers={"retry-after": "7"}, json={"detail": "busy"})
    away = Away(httpx.ConnectError("refused"), busy, answered(OK))
    assert await results(away.filler(), "a") == [Result.GENERATED]
    assert away.waits == [1.0, 7.0]


async def test_a_service_that_stays_away_ends_the_run() -> None:
    away = Away(httpx.ReadTimeout("slow"))
    with pytest.raises(PrecomputeError, match=r"does not answer.*run this again"):
        await away.filler().fill(["a"])
    assert away.waits == [1.0, 2.0, 4.0, 8.0, 16.0]


@pytest.mark.parametrize(
    ("response", "said"),
    [
        (httpx.Response(404, json={"detail": "nothing at this path"}), "404 nothing at this path"),
        (httpx.Response(413, text="no json"), "413"),
        (httpx.Response(200, text="<html>"), "does not answer as Requery does"),
        (answered(OK, OK), "does not answer as Requery does"),
    ],
)
async def test_another_answer_ends_the_run_at_once(response: httpx.Response, said: str) -> None:
    away = Away(response)
    with pytest.raises(PrecomputeError) as caught:
        await away.filler().fill(["a"])
    assert said in str(caught.value)
    assert away.waits == []


@pytest.mark.parametrize(
    ("status", "source", "result"),
    [
        ("ok", "coalesced", Result.GENERATED),
        ("none", "redis", Result.CACHED),
        ("ok", "override", Result.CACHED),
        ("none", "none", Result.FAILED),
        ("fallback", "none", Result.FAILED),
        ("timeout", "none", Result.FAILED),
    ],
)
async def test_each_answer_says_whether_it_is_kept(
    status: str, source: str, result: Result
) -> None:
    away = Away(answered({"status": status, "source": source}))
    assert await results(away.filler(), "a") == [result]


@pytest.mark.parametrize(
    "answer",
    [
        lambda: httpx.Response(200, json={"status": "live"}),
        lambda: httpx.Response(200, text="<html>"),
        lambda: httpx.Response(500),
        lambda: httpx.ConnectError("refused"),
    ],
)
async def test_an_address_of_something_else_is_said(
    answer: Callable[[], httpx.Response | Exception],
) -> None:
    with pytest.raises(PrecomputeError, match="check --url"):
        await served_version(Away(answer()).client, None)


@pytest.mark.parametrize(("status", "said"), [(401, "needs an API key"), (403, "does not allow")])
async def test_a_missing_key_is_told_as_such(status: int, said: str) -> None:
    away = Away(httpx.Response(status, json={"detail": "no"}))
    with pytest.raises(PrecomputeError, match=said):
        await served_version(away.client, None)
    with pytest.raises(PrecomputeError, match=said):
        await away.filler().fill(["a"])
    assert away.waits == []
