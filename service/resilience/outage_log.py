"""When to tell of a loss: once a minute at most, and never so that the log ends on a false note."""

from __future__ import annotations

import time
from collections.abc import Callable

EVERY_S = 60.0


class OutageLogThrottle:
    """Whether something that comes and goes is worth a line in the log.

    A loss is told at once if none was told in the last ``every_s`` seconds. One that was not told
    and lasts is told when that time is over; a return is told only after a loss that was.

    Args:
        every_s: least seconds between two losses that are told.
        clock: monotonic seconds.
    """

    def __init__(
        self, *, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._every_s = every_s
        self._clock = clock
        self._told = False
        self._told_at: float | None = None
        self.under_way = False
        self.times = 0
        """Losses since the one that was told before the last: what one line stands for."""

    def lost(self) -> bool:
        """Note that it is not there, at each sign of it; whether to tell so now."""
        if not self.under_way:
            if self._told:
                self.times = 0
            self.under_way, self._told = True, False
            self.times += 1
        now = self._clock()
        recently = self._told_at is not None and now - self._told_at < self._every_s
        if self._told or recently:
            return False
        self._told, self._told_at = True, now
        return True

    def back(self) -> bool:
        """Note that it is there; whether to tell so."""
        if not self.under_way:
            return False
        self.under_way = False
        return self._told
