"""Where the time of one request went."""

from __future__ import annotations

import time


class Stopwatch:
    """Adds up where the time of one request went, stage after stage."""

    __slots__ = ("_last", "stages", "started")

    def __init__(self) -> None:
        self.started = self._last = time.monotonic()
        self.stages: dict[str, float] = {}
        """Seconds by stage, in the order in which the stages were first left."""

    def lap(self, stage: str) -> None:
        """Book the time since the last lap (or the start) on ``stage``."""
        now = time.monotonic()
        self.stages[stage] = self.stages.get(stage, 0.0) + now - self._last
        self._last = now

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started
