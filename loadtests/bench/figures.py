"""Rounds to figures: medians with their spread, and ratios within a round.

A machine gets slower and faster for reasons of its own. Peers take turns (A B C, A B C, ...), a
ratio is taken between two turns of one round, and its median over the rounds is what is reported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any


@dataclass(frozen=True, slots=True)
class Spread:
    """Figures of several rounds.

    Attributes:
        median, least, most: of the rounds.
        rounds: how many there were.
    """

    median: float
    least: float
    most: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread | None:
        """Of one value for each round; ``None`` without rounds."""
        if not values:
            return None
        return cls(median(values), min(values), max(values), len(values))

    def content(self) -> dict[str, Any]:
        """For JSON."""
        return {name: _short(value) for name, value in asdict(self).items()}

    def __str__(self) -> str:
        return f"{_shown(self.median)} ({_shown(self.least)} to {_shown(self.most)})"


def ratios(rounds: Sequence[Mapping[str, float]], of: str, to: str) -> Spread | None:
    """``of`` in terms of ``to``, round by round; rounds that lack one of them are left out."""
    return Spread.of([r[of] / r[to] for r in rounds if of in r and r.get(to)])


def spreads(rounds: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    """The spread of each figure over the rounds that have it."""
    names = dict.fromkeys(name for one in rounds for name in one)
    found = {name: Spread.of([one[name] for one in rounds if name in one]) for name in names}
    return {name: spread for name, spread in found.items() if spread is not None}


def _short(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.5g}")


def _shown(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.3g}"
