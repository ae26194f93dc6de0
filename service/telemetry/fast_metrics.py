"""Fast counters and histograms for events that happen several times per request.

The library's own take a lock for each increment, because any thread may count, and its histograms
search their buckets one by one. These belong to the event loop's thread and cost a fifth. The
library reads them at a scrape.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

Child = TypeVar("Child")


LATENCY_BUCKETS_S = (
    0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2,
    0.3, 0.4, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0,
)  # fmt: skip
"""1 ms to 5 s, finest at the usual deadlines (50-150 ms)."""


class FastCounter:
    """One counter."""

    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def inc(self) -> None:
        """Add one."""
        self.value += 1


class FastHistogram:
    """One histogram.

    Args:
        bounds: upper bounds of the buckets, rising, without infinity.
    """

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        """Of each bucket, not cumulative."""
        self.total = 0.0
        """Sum of all values."""

    def observe(self, value: float) -> None:
        """Count a value in the first bucket with a bound of at least the value."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value


class _Family(Collector, Generic[Child]):
    """The children of one metric by label values."""

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        self._name, self._text, self._labels = name, text, tuple(labels)
        self._children: dict[tuple[str, ...], Child] = {}

    def labels(self, *values: str) -> Child:
        """The child with these label values."""
        if len(values) != len(self._labels):
            raise ValueError(f"{self._name} has the labels {', '.join(self._labels)}")
        child = self._children.get(values)
        if child is None:
            child = self._children[values] = self._make()
        return child

    def describe(self) -> Iterable[Metric]:
        """The family without samples."""
        return [self._family()]

    def collect(self) -> Iterable[Metric]:
        """The family with its samples; called in the event loop."""
        family = self._family()
        for values, child in self._children.items():
            self._add(family, values, child)
        return [family]

    def _make(self) -> Child:
        raise NotImplementedError

    def _family(self) -> Metric:
        raise NotImplementedError

    def _add(self, family: Metric, values: tuple[str, ...], child: Child) -> None:
        raise NotImplementedError


class FastCounters(_Family[FastCounter]):
    """A counter with labels.

    Args:
        name: without ``_total``.
        text: help text.
        labels: label names.
        registry: registers the metric.
    """

    def __init__(
        self, name: str, text: str, labels: Sequence[str], *, registry: CollectorRegistry
    ) -> None:
        super().__init__(name, text, labels)
        registry.register(self)

    def _make(self) -> FastCounter:
        return FastCounter()

    def _family(self) -> Metric:
        return CounterMetricFamily(self._name, self._text, labels=self._labels)

    def _add(self, family: Metric, values: tuple[str, ...], child: FastCounter) -> None:
        assert isinstance(family, CounterMetricFamily)  # noqa: S101 - for the type checker
        family.add_metric(values, float(child.value))


class FastHistograms(_Family[FastHistogram]):
    """A histogram with labels.

    Args:
        name: of the metric.
        text: help text.
        labels: label names.
        bounds: upper bounds of the buckets, rising, without infinity.
        registry: registers the metric.
    """

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        bounds: Sequence[float],
        *,
        registry: CollectorRegistry,
    ) -> None:
        super().__init__(name, text, labels)
        self._bounds = tuple(float(bound) for bound in bounds)
        written = (*self._bounds, float("inf"))
        self._written: list[str] = [floatToGoString(bound) for bound in written]  # type: ignore[no-untyped-call]
        registry.register(self)

    def _make(self) -> FastHistogram:
        return FastHistogram(self._bounds)

    def _family(self) -> Metric:
        return HistogramMetricFamily(self._name, self._text, labels=self._labels)

    def _add(self, family: Metric, values: tuple[str, ...], child: FastHistogram) -> None:
        assert isinstance(family, HistogramMetricFamily)  # noqa: S101 - for the type checker
        up_to = [float(count) for count in accumulate(child.counts)]
        family.add_metric(values, list(zip(self._written, up_to, strict=True)), child.total)
