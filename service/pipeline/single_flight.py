"""Single flight: one generation for each key at a time, shared by all requests for that key.

A flight is a task that holds a permit of the admission gate, or waits in line for it. Each request
waits for it until its own deadline. After the last deadline a flight in line ends; one that has
started continues, to fill the cache, within its own time limit and until a request needs its
permit. When the last client disconnects, the flight stops.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial

import structlog

from service.engine.protocol import Candidate
from service.errors import ClientDisconnected, RequeryError
from service.filtering.generation import Generation
from service.resilience.admission import Kind, Permit

_log = structlog.get_logger(component="coalesce")

Generate = Callable[[], AsyncIterator[Candidate]]
Keep = Callable[[Generation], Awaitable[None]]
DisconnectWaiter = Callable[[], Awaitable[None]]
"""Returns when the client has disconnected."""


class Flight:
    """One generation under way: the candidates so far, and how it ended.

    Args:
        permit: released when the flight ends.
        stop: stops the flight.
    """

    def __init__(self, permit: Permit, stop: Callable[[], None]) -> None:
        self._permit = permit
        self._stop = stop
        self._waiting = 0
        self._candidates: list[Candidate] = []
        self._generation: Generation | None = None
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.failure: Exception | None = None
        """Why the flight ended early, if it did."""

    @property
    def generation(self) -> Generation:
        """The candidates so far; after the end the same object for every request."""
        return self._generation or Generation.of(self._candidates)

    @property
    def queued(self) -> bool:
        """Whether it waits, or has waited, in line."""
        return self._permit.turn is not None

    @property
    def begun_at(self) -> float | None:
        """When its permit was granted, monotonic seconds; ``None``: it is in line."""
        return self._permit.begun_at or None

    @property
    def done(self) -> bool:
        """Whether the flight has ended, with or without success."""
        return self._done.done()

    @property
    def complete(self) -> bool:
        """Whether all candidates are there."""
        return self.done and self.failure is None

    async def wait(
        self,
        timeout_s: float,
        disconnected: DisconnectWaiter | None = None,
        kind: Kind = Kind.SHOPPER,
    ) -> None:
        """Return when the flight has ended or after ``timeout_s`` seconds.

        Args:
            timeout_s: until the deadline of the request.
            disconnected: see :data:`DisconnectWaiter`; ``None``: unknown.
            kind: of the request: a shopper's flight is before a batch's.

        Raises:
            ClientDisconnected: the client disconnected first. The flight stops if no other
                request waits for it.
        """
        if self.done:
            return
        self._waiting += 1
        self._permit.wanted(timeout_s, kind)
        left = False
        try:
            left = await self._wait(timeout_s, disconnected)
        finally:
            self._waiting -= 1
            if not left:
                self.idle()
            elif not self._waiting and not self.done:
                self._stop()
        if left:
            raise ClientDisconnected("the caller hung up before there was an answer")

    async def _wait(self, timeout_s: float, disconnected: DisconnectWaiter | None) -> bool:
        """Whether the client disconnected before the flight or the time ended."""
        if disconnected is None:
            await asyncio.wait((self._done,), timeout=timeout_s)
            return False
        leaving = asyncio.ensure_future(disconnected())
        leaving.add_done_callback(_retrieve)
        try:
            await asyncio.wait(
                (self._done, leaving), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED
            )
            return leaving.done() and not self.done
        finally:
            leaving.cancel()

    def idle(self) -> None:
        """Offer the permit to other requests, unless a request waits for this flight."""
        if not self._waiting and not self.done:
            self._permit.idle(self._stop)

    def finish(self) -> None:
        """Release the requests that wait, and the permit; idempotent."""
        if self.done:
            return
        self._generation = Generation.of(self._candidates)
        self._permit.release(completed=self.failure is None)
        self._done.set_result(None)

    async def run(self, generate: Generate, *, bound_s: float) -> None:
        """Collect the candidates; every end, cancellation included, finishes the flight."""
        try:
            if self._permit.turn is not None:
                await self._permit.turn
            async with asyncio.timeout(bound_s):
                await self._collect(generate())
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
            self.finish()

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
        bound_s: time limit of a flight in seconds.
    """

    def __init__(self, *, bound_s: float) -> None:
        self._bound_s = bound_s
        self._flights: dict[str, Flight] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def get(self, key: str) -> Flight | None:
        """The flight under way for ``key``."""
        return self._flights.get(key)

    def start(self, key: str, generate: Generate, keep: Keep, permit: Permit) -> Flight:
        """Start a flight for a ``key`` that has none.

        Args:
            key: equal for equal requests.
            generate: yields the candidates; called once.
            keep: awaited with the generation if the flight completes. Requests join the ended
                flight until ``keep`` returns, so it should store the result before it first awaits.
            permit: granted or in line; released when the flight ends.
        """

        def stop() -> None:
            # At once, so that no request joins a flight that is about to end.
            self._remove(key, flight)
            task.cancel()

        flight = self._flights[key] = Flight(permit, stop)
        task = asyncio.create_task(self._fly(key, flight, generate, keep))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(partial(_ended, flight))
        return flight

    def __contains__(self, key: str) -> bool:
        return key in self._flights

    def __len__(self) -> int:
        """Flights under way."""
        return len(self._flights)

    async def close(self) -> None:
        """Stop all flights and wait until they have released the engine."""
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def settle(self) -> None:
        """Wait until no flight is under way."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _fly(self, key: str, flight: Flight, generate: Generate, keep: Keep) -> None:
        try:
            await flight.run(generate, bound_s=self._bound_s)
            if flight.complete:
                await keep(flight.generation)
        except Exception:  # noqa: BLE001 - no request is left to raise it to
            _log.exception("generation_not_kept")
        finally:
            self._remove(key, flight)

    def _remove(self, key: str, flight: Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]


def _ended(flight: Flight, _task: asyncio.Task[None]) -> None:
    if not flight.done:  # cancelled before its first step
        flight.failure = TimeoutError("stopped")
        flight.finish()


def _retrieve(task: asyncio.Future[None]) -> None:
    """Mark an exception as seen."""
    if not task.cancelled():
        task.exception()
