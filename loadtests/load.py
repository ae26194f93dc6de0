"""The open-loop load generator: it sends each request when due, without waiting for answers."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence

from loadtests.arrivals import Arrival
from loadtests.exchange import Failure, NoReply, Outcome, Reply, Request, Transport

PATIENCE_S = 30.0
"""Timeout of an answer: far longer than any deadline, so that a hang is visible."""
MAX_OPEN = 4000
"""Limit of open requests; each needs a descriptor."""

Maker = Callable[[], Request]
"""Makes the next request of one kind."""


class Mix:
    """Draws requests of several kinds by weight; reproducible by seed.

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
        """Sum of the weights: arrivals per second if the weights are rates."""
        return sum(self._weights)


class OpenLoop:
    """Runs a plan of arrivals once and collects the outcomes.

    Args:
        arrivals: the plan, by time.
        make: makes the next request.
        transport: sends the requests.
        patience_s: timeout of an answer.
        max_open: limit of open requests; requests beyond it are recorded as unsent.
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
        """In order of completion."""
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
        """Send nothing more; open requests still finish."""
        self._stopped = True

    async def run(self) -> list[Outcome]:
        """Send all requests and wait for all answers."""
        self._begin = self._clock()
        async with asyncio.TaskGroup() as group:
            opened: set[asyncio.Task[None]] = set()
            for arrival in self._arrivals:
                # Also when behind schedule, because answers must be read meanwhile.
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
                stages=answer.stages,
                failure=reply if isinstance(reply, Failure) else None,
            )
        )
