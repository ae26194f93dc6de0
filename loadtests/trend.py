"""Whether a figure that was sampled over time grows, whatever it does in between."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import theilslopes

_MOST_POINTS = 600
"""Pairs grow with the square: longer series are thinned out evenly."""
_ENDS = 0.1
"""Share of the series at either end whose median is its first and last level."""


@dataclass(frozen=True, slots=True)
class Trend:
    """A robust straight line through samples (Theil and Sen): a few odd samples do not bend it.

    Attributes:
        first, last: medians of the first and the last tenth of the samples.
        least, most: of all samples.
        growth: what the line rises over the whole time, in the unit of the samples.
    """

    first: float
    last: float
    least: float
    most: float
    growth: float

    @property
    def percent(self) -> float:
        """Growth in percent of the first level."""
        return 100.0 * self.growth / self.first if self.first else 0.0


def trend(times: Sequence[float], values: Sequence[float]) -> Trend | None:
    """The trend of ``values`` at ``times``, which differ; ``None`` with fewer than two of them."""
    if len(values) < 2:
        return None
    step = -(-len(values) // _MOST_POINTS)
    slope = theilslopes(values[::step], times[::step]).slope
    end = max(1, int(len(values) * _ENDS))
    return Trend(
        first=float(np.median(values[:end])),
        last=float(np.median(values[-end:])),
        least=float(min(values)),
        most=float(max(values)),
        growth=float(slope) * (times[-1] - times[0]),
    )
