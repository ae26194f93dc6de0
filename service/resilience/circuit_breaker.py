"""A circuit breaker: what keeps failing is left alone for a while, then tried with care.

*Closed*, calls go through and their outcomes are watched. Too many faults *open* it: calls are
refused at once, for a wait that doubles each time it ends in vain. Then it is *half open*: calls
are tried, one at a time, until enough of them in a row went well, or one did not.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable

import structlog

from service.resilience.metrics import BreakerMetrics, State
from service.resilience.outage_log import OutageLogThrottle

_log = structlog.get_logger(component="breaker")

_JITTER = 0.25
"""Share by which a wait is cut short at most, so that replicas do not come back in step."""
_MOST_DOUBLINGS = 32


class Breaker:
    """One breaker. Plain calls of one thread: nothing here waits, and nothing raises.

    Who was allowed a call says how it ended, by exactly one of :meth:`succeeded`, :meth:`failed`
    and :meth:`cancelled`. What is said while the breaker is open comes from calls that were under
    way when it opened, and changes nothing.

    Args:
        name: in metrics and in the log.
        metrics: where it reports; ``None`` is nowhere.
        window: how many of the last outcomes are looked at.
        least: fewer outcomes than this say nothing about the share of faults.
        share: share of faults among them, in (0, 1], from which it opens.
        in_a_row: faults in a row that open it whatever else there was.
        good: trials in a row that close it.
        wait_s: seconds from opening to the first trial, at most; three quarters of it at least.
        longest_wait_s: bound on the wait as it doubles. It is also how long the breaker must have
            been closed before the next wait is short again, and how long a trial of which nothing
            is heard keeps the next one waiting.
        clock: monotonic seconds.
        draw: a random number in [0, 1).
    """

    def __init__(
        self,
        name: str,
        metrics: BreakerMetrics | None = None,
        *,
        window: int = 16,
        least: int = 8,
        share: float = 0.5,
        in_a_row: int = 5,
        good: int = 1,
        wait_s: float = 1.0,
        longest_wait_s: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._name = name
        self._metrics = metrics
        self._least = least
        self._share = share
        self._in_a_row = in_a_row
        self._good = good
        self._wait_s = wait_s
        self._longest_wait_s = longest_wait_s
        self._clock = clock
        self._draw = draw
        self._state: State = "closed"
        self._faults: deque[bool] = deque(maxlen=window)
        self._run = 0
        """Faults in a row while closed, good trials in a row while half open."""
        self._doublings = 0
        self._until = 0.0
        """When the next trial may begin."""
        self._closed_at: float | None = None
        self._outage = OutageLogThrottle(clock=clock)
        if metrics is not None:
            metrics.watch(name)

    @property
    def state(self) -> State:
        """``closed``, ``open`` or ``half_open``; it becomes half open with the first trial."""
        return self._state

    @property
    def closed(self) -> bool:
        """Whether calls go through."""
        return self._state == "closed"

    @property
    def wait_left_s(self) -> float:
        """Seconds until a trial may begin; 0 if one may now."""
        return 0.0 if self.closed else max(0.0, self._until - self._clock())

    def allow(self, *, trial: bool = True) -> bool:
        """Whether a call may be made now; a refusal is counted.

        Args:
            trial: whether this call may be the one that finds out how things stand.
        """
        if self.closed:
            return True
        if trial and self.wait_left_s == 0:
            if self._state == "open":
                self._run = 0
                self._move("half_open")
            self._until = self._clock() + self._longest_wait_s
            return True
        if self._metrics is not None:
            self._metrics.refused(self._name)
        return False

    def succeeded(self) -> None:
        """A call went well."""
        if self.closed:
            self._run = 0
            self._faults.append(False)
        elif self._state == "half_open":
            self._run += 1
            if self._run >= self._good:
                self._close()
            else:
                self._until = self._clock()

    def failed(self) -> None:
        """A call did not."""
        if self.closed:
            self._run += 1
            self._faults.append(True)
            if self._run >= self._in_a_row or self._too_many():
                recently = (
                    self._closed_at is not None
                    and self._clock() - self._closed_at < self._longest_wait_s
                )
                self._doublings = self._doublings + 1 if recently else 0
                self._open()
        elif self._state == "half_open":
            self._doublings += 1
            self._open()

    def cancelled(self) -> None:
        """A call was given up by its caller, and says nothing."""
        if self._state == "half_open":
            self._until = self._clock()

    def _too_many(self) -> bool:
        seen = len(self._faults)
        return seen >= self._least and sum(self._faults) >= self._share * seen

    def _open(self) -> None:
        self._doublings = min(self._doublings, _MOST_DOUBLINGS)
        longest = min(self._longest_wait_s, self._wait_s * 2**self._doublings)
        wait_s = longest * (1 - _JITTER * self._draw())
        self._until = self._clock() + wait_s
        self._move("open")
        if self._outage.failed():
            _log.info(
                "breaker_opened", name=self._name, wait_s=round(wait_s, 2),
                times=self._outage.times,
            )  # fmt: skip

    def _close(self) -> None:
        self._closed_at = self._clock()
        self._run = 0
        self._faults.clear()
        self._move("closed")
        if self._outage.recovered():
            _log.info("breaker_closed", name=self._name)

    def _move(self, state: State) -> None:
        self._state = state
        if self._metrics is not None:
            self._metrics.moved(self._name, state)
