"""Where a rising load stops being kept up with."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Point:
    """One rate that was tried.

    Attributes:
        rate: requests offered, a second.
        good_share: of them that were answered usefully in time.
    """

    rate: float
    good_share: float


def knee(points: Sequence[Point], share: float) -> tuple[float | None, float | None]:
    """The highest rate that was kept up with, and the lowest one above it that was not.

    A rate was kept up with if at least ``share`` of its requests were answered in time. A rate
    above one that was not kept up with does not count, however well it went: that was luck.

    Args:
        points: in any order.
        share: in (0, 1].

    Returns:
        Either is ``None`` if there is no such rate.
    """
    kept: float | None = None
    for point in sorted(points, key=lambda p: p.rate):
        if point.good_share < share:
            return kept, point.rate
        kept = point.rate
    return kept, None


@dataclass(frozen=True, slots=True)
class Rising:
    """Which rates to try.

    Attributes:
        start, factor: each is that much higher than the one before.
        most: of them, if all are kept up with.
        refine: rates tried between the last that was kept up with and the first that was not.
        share: of good answers that "kept up with" means.
    """

    start: float
    factor: float
    most: int
    refine: int
    share: float

    def next(self, points: Sequence[Point]) -> float | None:
        """The rate to try after these, which are in the order of trial; ``None``: none is left."""
        lost_at = next((i for i, p in enumerate(points) if p.good_share < self.share), None)
        if lost_at is None:
            tried = len(points)
            return self.start * self.factor**tried if tried < self.most else None
        kept, lost = knee(points, self.share)
        if kept is None or lost is None or len(points) - lost_at - 1 >= self.refine:
            return None
        # Half-way on a scale of ratios, as the rates themselves rise.
        return math.sqrt(kept * lost)
