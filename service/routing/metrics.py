"""What the routing document says, for dashboards and alerts."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Gauge

from service.routing.document import Routing


class RoutingMetrics:
    """Shares and the kill switch as they are in force in this process.

    Args:
        registry: where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._kill = Gauge(
            "requery_kill", "1 while the kill switch of all replicas is on", registry=registry
        )
        self._share = Gauge(
            "requery_routing_share",
            "Share of the units that are assigned to each version; without weights the default "
            "has 1",
            ["version"],
            registry=registry,
        )
        self._shadow = Gauge(
            "requery_routing_shadow_share",
            "Share of the requests that a candidate version answers too, unseen",
            ["version"],
            registry=registry,
        )

    def show(self, plan: Routing) -> None:
        """Show another plan; versions that it does not name are gone."""
        self._kill.set(plan.kill is not None)
        self._share.clear()
        for name, share in (plan.weights or {plan.default: 1.0}).items():
            self._share.labels(name).set(share)
        self._shadow.clear()
        if plan.shadow is not None:
            self._shadow.labels(plan.shadow.version).set(plan.shadow.share)
