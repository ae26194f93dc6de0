"""The deadline of a request: set by ``api.body.DeadlinePolicy``, awaited in ``pipeline``."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Self


@dataclass(frozen=True, slots=True)
class Deadline:
    """The monotonic time, in seconds, at which the answer is due."""

    at: float

    @classmethod
    def after(cls, milliseconds: float, *, since: float | None = None) -> Self:
        """The deadline ``milliseconds`` after ``since`` (a monotonic time; default: now)."""
        start = time.monotonic() if since is None else since
        return cls(start + milliseconds / 1000.0)

    def remaining(self) -> float:
        """Seconds until the deadline; 0 after it."""
        return max(0.0, self.at - time.monotonic())

    def overdue(self) -> float:
        """Seconds since the deadline; 0 before it."""
        return max(0.0, time.monotonic() - self.at)
