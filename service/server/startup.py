"""The outer ASGI application: answers until the real one is ready.

The server listens before the application exists, because the model store may be slow. Until then
``/livez`` answers 200 and everything else 503. Connections over the limit only get health checks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import orjson
from fastapi import FastAPI
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.problems import problem
from service.errors import NotReady, RequeryError
from service.server.connection import complete_or_raise, connection_of, too_many
from service.server.one_write import in_one_piece
from service.telemetry.request_context import make_context

_LIVE = frozenset({"/livez", "/v1/livez"})
_HEALTH = _LIVE | {"/readyz", "/v1/readyz"}


class Front:
    """An ASGI application around another one that is created later.

    Args:
        make: creates the application.
        on_failure: called with an error of ``make``, or of the application's start or stop.
        cutting_off: whether cancelled requests have been answered already.
    """

    def __init__(
        self,
        make: Callable[[], Awaitable[FastAPI]],
        *,
        on_failure: Callable[[Exception], None],
        cutting_off: Callable[[], bool] = lambda: False,
    ) -> None:
        self._make = make
        self._on_failure = on_failure
        self._cutting_off = cutting_off
        self._app: ASGIApp = _starting

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        connection = connection_of(scope)
        if connection is not None:
            send = in_one_piece(send)
            if connection.arriving:
                receive = complete_or_raise(receive, connection)
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if not self._cutting_off():
                raise

    async def crowded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one over the limit: only health checks are answered."""
        connection = connection_of(scope)
        if scope["path"] in _HEALTH or connection is None:
            await self(scope, receive, send)
        else:
            await _answer(too_many(connection.state), scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        """The server's lifespan; the application's starts within it, later."""
        await receive()
        stop = asyncio.Event()
        running = asyncio.create_task(self._run(stop), name="application")
        await send({"type": "lifespan.startup.complete"})
        await receive()
        stop.set()
        if self._app is _starting:
            running.cancel()
        await asyncio.wait((running,))
        await send({"type": "lifespan.shutdown.complete"})

    async def _run(self, stop: asyncio.Event) -> None:
        try:
            app = await self._make()
            async with app.router.lifespan_context(app):
                self._app = app
                await stop.wait()
        except Exception as error:  # noqa: BLE001 - passed on
            self._on_failure(error)


async def _starting(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] in _LIVE:
        live = orjson.dumps({"status": "live"})
        await Response(live, media_type="application/json")(scope, receive, send)
    else:
        error = NotReady("the service is starting; it waits for the model store")
        await _answer(error, scope, receive, send)


async def _answer(error: RequeryError, scope: Scope, receive: Receive, send: Send) -> None:
    request_id = make_context(scope["headers"]).request_id
    response = problem(error, request_id)
    response.headers["x-request-id"] = request_id
    await response(scope, receive, send)
