"""A circuit breaker: stops calls to something that fails, and tries again after a while.

*Closed*, it passes calls and records their outcomes. Too many failures *open* it: it refuses calls
for a wait that doubles after each failed trial. Then it is *half open*: it passes one call at a
time until enough in a row succeed, or one fails.
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
"""Most that a wait is shortened, as a share, so that replicas do not retry in step."""
_MOST_DOUBLINGS = 32


class Breaker:
    """One breaker, for one thread; its methods neither block nor raise.

    After an allowed call, exactly one of :meth:`succeeded`, :meth:`failed` and :meth:`cancelled`
    reports the outcome. Outcomes while the breaker is open are from earlier calls and change
    nothing.

    Args:
        name: in metrics and in the log.
        metrics: records transitions and refusals; ``None``: nothing does.
        window: number of recent outcomes to consider.
        least: least number of outcomes for a share of failures.
        share: share of failures in (0, 1] that opens the breaker.
        in_a_row: consecutive failures that open it in any case.
        good: consecutive successful trials that close it.
        wait_s: longest wait from opening to the first trial in seconds; at least three quarters
            of it.
        longest_wait_s: upper bound on the doubled wait. Also the time that the breaker must be
            closed before the wait is short again, and the time after which a trial without an
            outcome no longer blocks the next one.
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
        """Consecutive failures while closed, consecutive successful trials while half open."""
        self._doublings = 0
        self._until = 0.0
        """When the next trial may start."""
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
        """Seconds until a trial may start; 0 if one may start now."""
        return 0.0 if self.closed else max(0.0, self._until - self._clock())

    def allow(self, *, trial: bool = True) -> bool:
        """Whether a call may be made now; counts refusals.

        Args:
            trial: whether this call may be a trial.
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
        """A call has succeeded."""
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
        """A call has failed."""
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
        """A call was cancelled; it has no outcome."""
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
