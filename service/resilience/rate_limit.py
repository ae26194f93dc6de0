"""Token buckets: how many requests a second somebody may make, in bounded memory."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

MAX_BUCKETS = 10_000


class RateLimiter:
    """One token bucket for each name, as the generic cell rate algorithm has it.

    Of each bucket only the time is kept at which it will be full again, so that taking from one is
    a look-up and an addition. The bucket used longest ago is forgotten when there are too many; a
    forgotten one is full.

    Args:
        per_s: tokens that flow into each bucket a second.
        burst: tokens that a full bucket holds.
        most: buckets kept.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        *,
        per_s: float,
        burst: int,
        most: int = MAX_BUCKETS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._interval = 1.0 / per_s
        self._depth = burst * self._interval
        self._most = most
        self._clock = clock
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        """How many buckets are kept."""
        return len(self._full_at)

    def take(self, name: str) -> float:
        """Take a token out of a bucket; what is refused costs none.

        Returns:
            0 if there was one, else the seconds until there is.
        """
        now = self._clock()
        full_at = max(self._full_at.get(name, now), now) + self._interval
        wait = self._over(full_at, now)
        if not wait:
            self._full_at[name] = full_at
        elif name not in self._full_at:
            return wait
        self._full_at.move_to_end(name)
        if len(self._full_at) > self._most:
            self._full_at.popitem(last=False)
        return wait

    def wait(self, name: str) -> float:
        """Seconds until there is a token in the bucket; 0 if there is one now. Takes none."""
        now = self._clock()
        return self._over(max(self._full_at.get(name, now), now) + self._interval, now)

    def _over(self, full_at: float, now: float) -> float:
        over = full_at - now - self._depth
        # What is left of rounding is no reason to wait.
        return over if over > self._interval * 1e-6 else 0.0
