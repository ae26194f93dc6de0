from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from service.routing.document import Kill, Routing, ShadowTraffic
from service.routing.metrics import RoutingMetrics
from tests.support.service import Service

PLAN = Routing(
    default="a",
    weights={"a": 0.9, "b": 0.1},
    salt="autumn",
    shadow=ShadowTraffic(version="c", share=0.05),
)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def shares(registry: CollectorRegistry, name: str = "requery_routing_share") -> dict[str, float]:
    return {
        sample.labels["version"]: sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == name
    }


def test_it_shows_the_plan_in_force_and_nothing_of_the_one_before(
    registry: CollectorRegistry,
) -> None:
    metrics = RoutingMetrics(registry)
    metrics.show(PLAN)
    assert shares(registry) == {"a": 0.9, "b": 0.1}
    assert shares(registry, "requery_routing_shadow_share") == {"c": 0.05}
    metrics.show(Routing(default="b", weights={}, salt="autumn"))
    assert shares(registry) == {"b": 1.0}
    assert shares(registry, "requery_routing_shadow_share") == {}


@pytest.mark.parametrize("version", ["a", None])
def test_the_kill_switch_is_on_or_off(registry: CollectorRegistry, version: str | None) -> None:
    metrics = RoutingMetrics(registry)
    metrics.show(PLAN.killed(Kill(version=version, reason="test")))
    assert registry.get_sample_value("requery_kill") == 1
    metrics.show(PLAN)
    assert registry.get_sample_value("requery_kill") == 0


async def test_the_service_shows_it_from_the_start_and_follows(service: Service) -> None:
    assert await service.metric("requery_routing_share", version="test-1") == 1
    assert await service.metric("requery_kill") == 0
    response = await service.client.put("/routing/kill", json={"version": None, "reason": "test"})
    assert response.status_code == 200, response.text
    assert await service.metric("requery_kill") == 1
