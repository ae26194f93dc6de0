"""Single flight: one generation per key at a time, however many shoppers wait for it.

A flight is a task of its own, and holds a place at the engine. Those who wait come and go with
their deadlines. When the last one's deadline passes the flight goes on to fill the cache, within a
bound of its own, and gives way if its place is wanted; when the last one hangs up it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Protocol

import structlog

from service.engine.protocol import Candidate
from service.errors import ClientDisconnected, RequeryError

_log = structlog.get_logger(component="coalesce")

Start = Callable[[], AsyncIterator[Candidate]]
Finish = Callable[[tuple[Candidate, ...]], Awaitable[None]]
DisconnectWaiter = Callable[[], Awaitable[None]]
"""Returns when the caller has hung up."""


class Place(Protocol):
    """What a flight holds while it is under way; :class:`service.resilience.admission.Permit`."""

    def release(self, *, whole: bool) -> None:
        """The flight has ended; ``whole`` if not before its time."""

    def idle(self, evict: Callable[[], None]) -> None:
        """Nobody waits for the flight any more; ``evict`` ends it."""

    def wanted(self) -> None:
        """Somebody waits for it again."""


class _NoPlace:
    """Where there is no limit."""

    def release(self, *, whole: bool) -> None:
        pass

    def idle(self, evict: Callable[[], None]) -> None:
        pass

    def wanted(self) -> None:
        pass


class Flight:
    """One generation under way: the candidates so far, and how it ended.

    Args:
        place: given back when it ends.
        stop: ends it early.
    """

    def __init__(self, place: Place, stop: Callable[[], None]) -> None:
        self._place = place
        self._stop = stop
        self._waiting = 0
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

    async def wait(self, timeout_s: float, gone: DisconnectWaiter | None = None) -> None:
        """Return when the flight has ended or ``timeout_s`` seconds have passed.

        Raises:
            CallerLeft: the caller hung up first. If nobody else waits the flight ends.
        """
        if self.done:
            return
        self._waiting += 1
        self._place.wanted()
        left = False
        try:
            left = await self._wait(timeout_s, gone)
        finally:
            self._waiting -= 1
            if not self._waiting and not self.done:
                if left:
                    self._stop()
                else:
                    self._place.idle(self._stop)
        if left:
            raise ClientDisconnected("the caller hung up before there was an answer")

    async def _wait(self, timeout_s: float, gone: DisconnectWaiter | None) -> bool:
        """Whether the caller hung up; wait() leaves the flight alone, since others wait for it."""
        if gone is None:
            await asyncio.wait((self._done,), timeout=timeout_s)
            return False
        leaving = asyncio.ensure_future(gone())
        leaving.add_done_callback(_looked_at)
        try:
            await asyncio.wait(
                (self._done, leaving), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            return leaving.done() and not self.done
        finally:
            leaving.cancel()

    def nobody_waits(self) -> None:
        """Say that it was begun for the cache alone."""
        if not self._waiting and not self.done:
            self._place.idle(self._stop)

    def land(self) -> None:
        """Release who waits, and the place; idempotent. Also if it never came to run."""
        if self.done:
            return
        self._place.release(whole=self.failure is None)
        self._done.set_result(None)

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
            self.land()

    async def _collect(self, stream: AsyncIterator[Candidate]) -> None:
        try:
            async for candidate in stream:
                self._candidates.append(candidate)
        finally:
            close = getattr(stream, "aclose", None)
            if close is not None:
                await close()


class SingleFlight:
    """Flights by key.

    Args:
        bound_s: longest that one flight may take, in seconds, waited for or not.
    """

    def __init__(self, *, bound_s: float) -> None:
        self._bound_s = bound_s
        self._flights: dict[str, Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def join(
        self, key: str, start: Start, finish: Finish, admit: Callable[[], Place] = _NoPlace
    ) -> tuple[Flight, bool]:
        """The flight for ``key``, and whether the caller leads it (it was not under way).

        Args:
            key: what makes two requests the same.
            start: begins the generation; called once, by the flight.
            finish: awaited with all candidates if the flight completes. A later caller joins the
                ended flight until ``finish`` returns, so it should store the result before it
                first waits.
            admit: gives a new flight its place; what it raises is raised here.
        """
        flight = self._flights.get(key)
        if flight is not None:
            return flight, False

        def stop() -> None:
            # At once, so that nobody joins what is about to end.
            if self._flights.get(key) is begun:
                del self._flights[key]
            task.cancel()

        begun = self._flights[key] = Flight(admit(), stop)
        task = asyncio.create_task(self._fly(key, begun, start, finish))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(partial(_landed, begun))
        return begun, True

    def __contains__(self, key: str) -> bool:
        return key in self._flights

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
            if self._flights.get(key) is flight:
                del self._flights[key]


def _landed(flight: Flight, _task: asyncio.Task[None]) -> None:
    if not flight.done:  # cancelled before its first step
        flight.failure = TimeoutError("stopped")
        flight.land()


def _looked_at(task: asyncio.Future[None]) -> None:
    if not task.cancelled():
        task.exception()
