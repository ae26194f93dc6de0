from __future__ import annotations

from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry

from service.filtering.candidates import Selection
from service.pipeline.answer import Answer, Status
from service.pipeline.goodput import GRACE_S, Goodput
from service.pipeline.params import RewriteParams
from service.resilience.admission import Kind
from service.resilience.deadline import Deadline
from service.routing.router import Assignment
from tests.support.engine import ScriptedEngine
from tests.support.service import Serve

NAME = "requery_answers_total"


def answered(registry: CollectorRegistry, status: Status, *, left_ms: float) -> None:
    """Count a shopper's answer of this status, so long before its deadline."""
    ask = RewriteParams("stake", Deadline.after(left_ms))
    answer = Answer("stake", "a", Selection((), ()), status, "none")
    goodput = Goodput(registry)
    goodput.watch("a")
    goodput.answered(ask, Assignment("a", None, "default"), answer)


def counted(registry: CollectorRegistry, name: str, label: str) -> dict[str, float]:
    """Value by a label, of samples that are not zero."""
    return {
        sample.labels[label]: sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == name and sample.value
    }


@pytest.mark.parametrize(
    ("status", "left_ms", "result"),
    [
        ("ok", 60_000, "in_time"),
        ("none", 60_000, "in_time"),
        ("partial", 0, "in_time"),
        ("ok", -1000 * GRACE_S - 1, "late"),
        ("partial", -60_000, "late"),
        ("timeout", 0, "timeout"),
        ("timeout", -60_000, "timeout"),
        ("fallback", 60_000, "fallback"),
    ],
)
def test_what_a_caller_could_use(
    status: Status, left_ms: float, result: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "service.resilience.deadline.time", SimpleNamespace(monotonic=lambda: 1000.0)
    )
    registry = CollectorRegistry()
    answered(registry, status, left_ms=left_ms)
    assert counted(registry, NAME, "result") == {result: 1}
    assert counted(registry, NAME, "kind") == {"shopper": 1}


def test_a_version_is_shown_with_zeros() -> None:
    registry = CollectorRegistry()
    Goodput(registry).watch("a")
    for kind in (Kind.SHOPPER, Kind.BATCH):
        for result in ("in_time", "late", "timeout", "fallback"):
            labels = {"version": "a", "kind": kind.value, "result": result}
            assert registry.get_sample_value(NAME, labels) == 0
    for why in ("pin", "unit", "default", "kill"):
        labels = {"version": "a", "why": why}
        assert registry.get_sample_value("requery_assignments_total", labels) == 0


async def test_the_service_counts_answers_and_assignments(serve: Serve) -> None:
    engine = ScriptedEngine(held=True)
    service = await serve(engine)
    late = await service.rewrite("one", deadline_ms=1, unit_id="u-1")
    assert late["status"] in ("partial", "timeout")
    engine.release()
    await service.idle()
    await service.rewrite("one", model_version="test-1", deadline_ms=30_000)
    batch = await service.client.post("/rewrite/batch", json={"queries": ["one", "two"]})
    assert batch.status_code == 200
    shopper = {"version": "test-1", "kind": "shopper"}
    results = ("in_time", "late", "timeout", "fallback")
    assert sum([await service.metric(NAME, **shopper, result=one) for one in results]) == 2
    assert await service.metric(NAME, version="test-1", kind="batch", result="in_time") == 2
    assignments = "requery_assignments_total"
    assert await service.metric(assignments, version="test-1", why="pin") == 1
    assert await service.metric(assignments, version="test-1", why="default") == 3
