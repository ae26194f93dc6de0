"""Exponential backoff by name."""

from __future__ import annotations

import time
from collections.abc import Callable


class Backoff:
    """Waits after failures: ``first_s`` seconds, then twice as long each time.

    Args:
        first_s: wait after the first failure in seconds.
        longest_s: longest wait in seconds.
        clock: monotonic seconds.
    """

    def __init__(
        self, first_s: float, longest_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._clock = clock
        self._waits: dict[str, tuple[float, float]] = {}

    def failed(self, name: str) -> None:
        """Record a failure of ``name``."""
        _, wait = self._waits.get(name, (0.0, 0.0))
        wait = min(wait * 2 or self._first_s, self._longest_s)
        self._waits[name] = (self._clock() + wait, wait)

    def forget(self, name: str) -> None:
        """Reset ``name``: it may be tried at once."""
        self._waits.pop(name, None)

    def due(self, name: str) -> bool:
        """Whether ``name`` may be tried now."""
        until, _ = self._waits.get(name, (0.0, 0.0))
        return name not in self._waits or self._clock() >= until
