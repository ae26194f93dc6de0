"""Time by stage of one request."""

from __future__ import annotations

import time


class Stopwatch:
    """Adds up the time of each stage of a request."""

    __slots__ = ("_last", "stages", "started")

    def __init__(self) -> None:
        self.started = self._last = time.monotonic()
        self.stages: dict[str, float] = {}
        """Seconds by stage, in order of first use."""

    def lap(self, stage: str, *, until: float | None = None) -> None:
        """Add the time since the last lap (or the start) to ``stage``.

        Args:
            stage: name.
            until: monotonic end of the stage; default: now.
        """
        now = time.monotonic() if until is None else max(until, self._last)
        self.stages[stage] = self.stages.get(stage, 0.0) + now - self._last
        self._last = now

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started
