"""Single flight: one generation per key at a time, however many shoppers wait for it.

A flight is a task of its own. Those who wait come and go with their deadlines; the flight goes on
to fill the cache, within a bound of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import structlog

from service.engine.protocol import Candidate
from service.errors import RequeryError

_log = structlog.get_logger(component="coalesce")

Start = Callable[[], AsyncIterator[Candidate]]
Finish = Callable[[tuple[Candidate, ...]], Awaitable[None]]


class Flight:
    """One generation under way: the candidates so far, and how it ended."""

    def __init__(self) -> None:
        self._candidates: list[Candidate] = []
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.failure: Exception | None = None
        """Why it ended early, if it did."""

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """Those that have finished so far, in the order in which they did."""
        return tuple(self._candidates)

    @property
    def done(self) -> bool:
        """Whether it has ended, well or not."""
        return self._done.done()

    @property
    def complete(self) -> bool:
        """Whether all candidates are there."""
        return self.done and self.failure is None

    async def wait(self, timeout_s: float) -> None:
        """Return when the flight has ended or ``timeout_s`` seconds have passed."""
        if not self.done:
            # wait() leaves the future alone when the caller gives up: others wait for it too.
            await asyncio.wait((self._done,), timeout=timeout_s)

    async def run(self, start: Start, *, bound_s: float) -> None:
        """Collect the candidates; every end, cancellation included, releases those who wait."""
        try:
            async with asyncio.timeout(bound_s):
                await self._collect(start())
        except TimeoutError as error:
            self.failure = error
        except asyncio.CancelledError:
            self.failure = TimeoutError("stopped")
            raise
        except RequeryError as error:
            self.failure = error
        except Exception as error:  # noqa: BLE001 - a search page must not break on any fault
            self.failure = error
            _log.exception("generation_failed")
        finally:
            self._done.set_result(None)

    async def _collect(self, stream: AsyncIterator[Candidate]) -> None:
        try:
            async for candidate in stream:
                self._candidates.append(candidate)
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()


class Coalescer:
    """Flights by key.

    Args:
        bound_s: longest that one flight may take, in seconds, waited for or not.
    """

    def __init__(self, *, bound_s: float) -> None:
        self._bound_s = bound_s
        self._flights: dict[str, Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def join(self, key: str, start: Start, finish: Finish) -> tuple[Flight, bool]:
        """The flight for ``key``, and whether the caller leads it (it was not under way).

        Args:
            key: what makes two requests the same.
            start: begins the generation; called once, by the flight.
            finish: awaited with all candidates if the flight completes. A later caller joins the
                ended flight until ``finish`` returns, so it should store the result before it
                first waits.
        """
        flight = self._flights.get(key)
        if flight is not None:
            return flight, False
        flight = self._flights[key] = Flight()
        task = asyncio.create_task(self._fly(key, flight, start, finish))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return flight, True

    def __len__(self) -> int:
        """Flights under way."""
        return len(self._flights)

    async def close(self) -> None:
        """Stop all flights and wait until they have let go of the engine."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def settle(self) -> None:
        """Wait until no flight is under way."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _fly(self, key: str, flight: Flight, start: Start, finish: Finish) -> None:
        try:
            await flight.run(start, bound_s=self._bound_s)
            if flight.failure is None:
                await finish(flight.candidates)
        except Exception:  # noqa: BLE001 - there is nobody left to raise it to
            _log.exception("generation_not_kept")
        finally:
            self._flights.pop(key, None)
