"""What scenarios make of outcomes, and that what they send is what the service takes."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import Mock

import pytest

from loadtests.exchange import Failure, Outcome, Reply, Request
from loadtests.processes import ServerFailed
from loadtests.queries import Queries
from loadtests.scenarios import engine, overload, redis, soak, traffic
from loadtests.scenarios.overload import OverloadPlan
from loadtests.scenarios.soak import SoakPlan
from loadtests.scenarios.traffic import rewrite
from tests.support.service import Service, serving
from tests.unit.loadtests.outcomes import Scripted, outcome

KNOWN = ("steel stake", "vinyl floor", "deck screws")
PLAN = replace(OverloadPlan(), before_s=10.0, overload_s=10.0, after_s=10.0)


def through_an_overload(*, bad_after_s: float) -> list[Outcome]:
    """7 a second, then 30 of which 10 are answered, then 7 again, bad at first."""
    before = [outcome(due=i / 7, phase="before") for i in range(70)]
    over = [
        outcome(due=10 + i / 30, phase="overload")
        if i % 3 == 0
        else outcome(due=10 + i / 30, phase="overload", code=503, latency=0.004)
        for i in range(300)
    ]
    after = [
        outcome(due=20 + i / 7, phase="after", status="timeout" if i / 7 < bad_after_s else "ok")
        for i in range(70)
    ]
    return before + over + after


def test_an_overload_that_is_met_well() -> None:
    found = overload._overload_figures(through_an_overload(bad_after_s=0.0), 10.0, PLAN)
    assert found["goodput_share_of_peak"] == 1.0
    assert found["shed_share"] == pytest.approx(2 / 3, abs=0.001)
    assert found["latency_of_503_ms"]["p99"] == pytest.approx(4)
    assert found["neither_good_nor_503"] == 0
    assert found["recovery_s"] == 0.0
    # Three times too little proves nothing.
    found |= {"peak_goodput_per_s": 10.0, "capacity_reached": False}
    assert overload._promises("d", found)[0].held is None


def test_an_overload_that_is_not() -> None:
    outcomes = through_an_overload(bad_after_s=4.0)
    outcomes.append(outcome(due=15.0, phase="overload", code=500))
    outcomes.append(outcome(due=15.0, phase="overload", code=0, failure=Failure.UNANSWERED))
    found = overload._overload_figures(outcomes, 20.0, PLAN)
    assert found["goodput_share_of_peak"] == 0.5
    assert found["neither_good_nor_503"] == 2
    assert found["other_5xx"] == 1
    assert 3.0 < found["recovery_s"] <= 4.25
    found |= {"peak_goodput_per_s": 20.0, "capacity_reached": True}
    assert [p.held for p in overload._promises("d", found)] == [False, None, True, False]


def test_a_fault_is_compared_with_what_was_before_it() -> None:
    outcomes = [outcome(phase="before", latency=0.002) for _ in range(100)]
    outcomes += [outcome(phase="fault", latency=0.017) for _ in range(100)]
    outcomes += [outcome(phase="after", latency=9.0)]
    assert redis._compared(outcomes, lambda o: o.latency)["added_p99"] == pytest.approx(15)
    assert redis._compared([], lambda o: o.latency)["added_p99"] is None


def test_an_engine_that_comes_back() -> None:
    outcomes = [outcome(due=i / 10, source="memory") for i in range(300)]
    outcomes += [outcome(due=12.0, latency=1.5, status="timeout")]
    outcomes += [outcome(due=20.5, latency=0.3, source="engine")]
    seen = engine._Seen(not_ready_s=0.2, ready_again_s=10.0)
    found = engine._figures(outcomes, 10.0, seen) | {"old_core_left": False}
    assert found["before"]["requests"] == 100
    assert found["down"]["requests"] == 101
    assert found["down"]["statuses"] == {"ok": 100, "timeout": 1}
    assert found["worst_over_deadline_ms"] == pytest.approx(500)
    assert found["first_generated_answer_s"] == pytest.approx(10.8)
    assert [p.held for p in engine._promises("SIGKILL", found)] == [False, True, True]


def test_an_engine_that_does_not() -> None:
    outcomes = [outcome(due=i / 10, code=500 if i > 200 else 200) for i in range(300)]
    found = engine._figures(outcomes, 10.0, engine._Seen(not_ready_s=0.2))
    found |= {"old_core_left": False}
    assert found["down"]["requests"] == 200
    assert found["other_5xx"] == 99
    assert [p.held for p in engine._promises("SIGKILL", found)] == [True, False, False]


def test_only_what_is_not_expected_of_a_kind_is_told() -> None:
    outcomes = [
        outcome(kind="hit"),
        outcome(kind="hit", code=503),
        outcome(kind="bad", code=422),
        outcome(kind="hang-up", code=0, failure=Failure.LEFT),
        outcome(kind="hit", code=500),
        outcome(kind="bad", code=200),
        outcome(kind="look", code=0, failure=Failure.RESET),
    ]
    assert soak._unexpected(outcomes) == {"hit: 500": 1, "bad: 200": 1, "look: reset": 1}


def test_a_request_names_its_deadline_only_if_told_to() -> None:
    named, silent = (rewrite("a", "hit", deadline_s=0.25, named=n) for n in (True, False))
    assert named.body == b'{"query":"a","deadline_ms":250}'
    assert (silent.body, silent.deadline_s) == (b'{"query":"a"}', 0.25)


async def test_warming_asks_until_there_is_a_whole_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "_WARM_PAUSE_S", 0.0)
    said = ((503, "overloaded"), (200, "timeout"), (200, "ok"), (200, "none"))
    waiting = iter(Reply(*one) for one in said)
    target = Mock(transport=Scripted(lambda _: next(waiting)))
    await traffic.warm(target, ["steel stake", "vinyl floor"])
    assert [b"steel" in (r.body or b"") for r in target.transport.sent] == [True, True, True, False]


async def test_warming_gives_up_on_a_service_that_never_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(traffic, "_WARM_PATIENCE_S", -1.0)
    target = Mock(transport=Scripted(lambda _: Reply(200, "fallback")))
    with pytest.raises(ServerFailed, match="fallback"):
        await traffic.warm(target, ["steel stake"])


async def test_the_service_takes_what_the_soak_sends() -> None:
    queries = Queries(KNOWN, seed=1)
    kinds = soak._Kinds(queries, queries, 2.0, "test-1", seed=1)
    async with serving() as serve:
        service = await serve()
        outcomes = [
            await answered(service, request)
            for _, make in kinds.parts(SoakPlan())
            for request in (make() for _ in range(3))
        ]
        bad = [
            await answered(service, Request("bad", path, body, headers=headers))
            for path, body, headers in soak._BAD
        ]
        looks = [
            await answered(service, Request("look", path, method="GET")) for path in soak._LOOKS
        ]
    assert soak._unexpected(outcomes + bad + looks) == {}
    assert {o.kind for o in outcomes} == {
        "hit", "unit", "miss", "batch", "relevance", "bad", "hang-up", "look", "route", "purge",
    }  # fmt: skip


async def answered(service: Service, request: Request) -> Outcome:
    headers = {"content-type": "application/json", **request.headers}
    response = await service.client.request(
        request.method, request.path, content=request.body, headers=headers
    )
    return outcome(kind=request.kind, code=response.status_code)
