"""Throttled log lines about outages: at most one a minute, and the last one is always true."""

from __future__ import annotations

import time
from collections.abc import Callable

EVERY_S = 60.0


class OutageLogThrottle:
    """Decides whether an outage or a recovery is worth a line in the log.

    An outage is logged at once if no other was logged in the last ``every_s`` seconds; otherwise
    when that time has passed, if it lasts. A recovery is logged only after a logged outage.

    Args:
        every_s: least seconds between two logged outages.
        clock: monotonic seconds.
    """

    def __init__(
        self, *, every_s: float = EVERY_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._every_s = every_s
        self._clock = clock
        self._logged = False
        self._logged_at: float | None = None
        self.under_way = False
        self.times = 0
        """Outages since the last but one that was logged: those that the last line stands for."""

    def failed(self) -> bool:
        """Note a failure; whether to log the outage now."""
        if not self.under_way:
            if self._logged:
                self.times = 0
            self.under_way, self._logged = True, False
            self.times += 1
        now = self._clock()
        recently = self._logged_at is not None and now - self._logged_at < self._every_s
        if self._logged or recently:
            return False
        self._logged, self._logged_at = True, now
        return True

    def recovered(self) -> bool:
        """Note a success; whether to log the recovery."""
        if not self.under_way:
            return False
        self.under_way = False
        return self._logged
