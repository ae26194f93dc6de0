"""The Prometheus registry of one service: its metrics are all named ``requery_*``.

vLLM's collectors live in the global registry, where a second engine unregisters the first one's.
The service leaves that registry alone.
"""

from __future__ import annotations

import asyncio
import platform

from prometheus_client import CollectorRegistry, Gauge, ProcessCollector, disable_created_metrics


def service_registry(release: str) -> CollectorRegistry:
    """A registry with the metrics of the process.

    Args:
        release: version of this program, for ``requery_build_info``.
    """
    # They double the series and add nothing to a counter's reset.
    disable_created_metrics()  # type: ignore[no-untyped-call]
    registry = CollectorRegistry()
    # The event loop runs a scrape, so these are its tasks.
    Gauge("requery_asyncio_tasks", "Tasks of the event loop", registry=registry).set_function(
        lambda: len(asyncio.all_tasks())
    )
    Gauge(
        "requery_build_info",
        "Always 1; the running release",
        ["release", "python"],
        registry=registry,
    ).labels(release, platform.python_version()).set(1)
    ProcessCollector(namespace="requery", registry=registry)
    return registry
