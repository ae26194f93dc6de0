"""The open-loop load generator: each request is sent when it is due, whatever became of others."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence

from loadtests.arrivals import Arrival
from loadtests.exchange import Failure, NoReply, Outcome, Reply, Request, Transport

PATIENCE_S = 30.0
"""How long an answer is waited for: far longer than any deadline, so that a hang is seen whole."""
MAX_OPEN = 4000
"""Requests open at a time; each takes a descriptor."""

Maker = Callable[[], Request]
"""Makes the next request of one kind."""


class Mix:
    """Requests of several kinds, drawn by weight; the same for the same seed.

    Args:
        parts: weight and maker of each kind.
        seed: of the draw.
    """

    def __init__(self, parts: Sequence[tuple[float, Maker]], *, seed: int) -> None:
        self._makers = [maker for _, maker in parts]
        self._weights = [weight for weight, _ in parts]
        self._rng = random.Random(seed)

    def __call__(self) -> Request:
        """The next request."""
        (maker,) = self._rng.choices(self._makers, self._weights)
        return maker()

    @property
    def rate(self) -> float:
        """The sum of the weights: arrivals a second, where the weights are rates."""
        return sum(self._weights)


class OpenLoop:
    """Runs a plan of arrivals once, and keeps the outcomes.

    Args:
        arrivals: the plan, by time.
        make: the next request, told nothing of the answers so far.
        transport: carries the requests.
        patience_s: how long an answer is waited for.
        max_open: requests open at a time; what is due beyond it is recorded as unsent.
        clock: seconds, monotonic and finer than a millisecond.
        sleep: waits for seconds of that clock.
    """

    def __init__(
        self,
        arrivals: Iterable[Arrival],
        make: Maker,
        transport: Transport,
        *,
        patience_s: float = PATIENCE_S,
        max_open: int = MAX_OPEN,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self.outcomes: list[Outcome] = []
        """In the order in which they were known."""
        self._arrivals = arrivals
        self._make = make
        self._transport = transport
        self._patience_s = patience_s
        self._max_open = max_open
        self._clock = clock
        self._sleep = sleep
        self._begin = 0.0
        self._stopped = False

    def now(self) -> float:
        """Seconds since the start of the run."""
        return self._clock() - self._begin

    def stop(self) -> None:
        """Send nothing more; what is open is still waited for."""
        self._stopped = True

    async def run(self) -> list[Outcome]:
        """Send everything, wait for every answer; all outcomes."""
        self._begin = self._clock()
        async with asyncio.TaskGroup() as group:
            opened: set[asyncio.Task[None]] = set()
            for arrival in self._arrivals:
                # Also when it is behind: the answers must be read meanwhile.
                await self._sleep(max(0.0, arrival.due - self.now()))
                if self._stopped:
                    break
                request = self._make()
                if len(opened) >= self._max_open:
                    self._keep(arrival, request, self.now(), Failure.UNSENT)
                    continue
                task = group.create_task(self._exchange(arrival, request))
                opened.add(task)
                task.add_done_callback(opened.discard)
        return self.outcomes

    async def _exchange(self, arrival: Arrival, request: Request) -> None:
        sent = self.now()
        leaves = request.leave_after_s is not None
        try:
            async with asyncio.timeout(request.leave_after_s if leaves else self._patience_s):
                reply: Reply | Failure = await self._transport.send(request)
        except NoReply as error:
            reply = error.failure
        except TimeoutError:
            reply = Failure.LEFT if leaves else Failure.UNANSWERED
        self._keep(arrival, request, sent, reply)

    def _keep(
        self, arrival: Arrival, request: Request, sent: float, reply: Reply | Failure
    ) -> None:
        answer = Reply(0) if isinstance(reply, Failure) else reply
        self.outcomes.append(
            Outcome(
                phase=arrival.phase,
                kind=request.kind,
                due=arrival.due,
                sent=sent,
                done=self.now(),
                deadline_s=request.deadline_s,
                code=answer.code,
                status=answer.status,
                source=answer.source,
                cache_s=answer.cache_s,
                failure=reply if isinstance(reply, Failure) else None,
            )
        )
