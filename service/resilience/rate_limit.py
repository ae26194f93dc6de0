"""Rate limits by token buckets in bounded memory."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

MAX_BUCKETS = 10_000


class RateLimiter:
    """One token bucket for each name (generic cell rate algorithm).

    A bucket is the time at which it will be full again. The least recently used bucket is dropped
    when there are too many; a dropped bucket is full.

    Args:
        per_s: tokens added to each bucket per second.
        burst: capacity of a bucket in tokens.
        most: most buckets.
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
        """Number of buckets."""
        return len(self._full_at)

    def take(self, name: str) -> float:
        """Take a token from a bucket if there is one.

        Returns:
            0 if there was one, otherwise the seconds until there is.
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
        """Seconds until the bucket has a token; 0 if it has one. Takes none."""
        now = self._clock()
        return self._over(max(self._full_at.get(name, now), now) + self._interval, now)

    def _over(self, full_at: float, now: float) -> float:
        over = full_at - now - self._depth
        # Ignore rounding errors.
        return over if over > self._interval * 1e-6 else 0.0
