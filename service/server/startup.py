"""What a request meets first: the application, or what stands in for it.

The server listens before there is an application, since what that is made of (the model store) may
come late. Until then ``/livez`` says that the process is alive, and everything else that it is not
ready. On connections over the limit, only health checks are answered.
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
from service.server.connection import connection_of, too_many, whole
from service.server.one_write import in_one_piece
from service.telemetry.request_context import make_context

_HEALTH = frozenset({"/livez", "/readyz"})


class Front:
    """An ASGI application around another one that is still to be made.

    Args:
        make: makes it; what it raises is told to ``on_failure``.
        on_failure: told of what kept the application from being made, started or stopped.
        cutting_off: whether requests that are cancelled now have been answered.
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
                receive = whole(receive, connection)
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
        """The lifespan of the server, in which that of the application begins when it can."""
        await receive()
        told = asyncio.Event()
        running = asyncio.create_task(self._run(told), name="application")
        await send({"type": "lifespan.startup.complete"})
        await receive()
        told.set()
        if self._app is _starting:
            running.cancel()
        await asyncio.wait((running,))
        await send({"type": "lifespan.shutdown.complete"})

    async def _run(self, told_to_stop: asyncio.Event) -> None:
        try:
            app = await self._make()
            async with app.router.lifespan_context(app):
                self._app = app
                await told_to_stop.wait()
        except Exception as error:  # noqa: BLE001 - whoever started the server tells of it
            self._on_failure(error)


async def _starting(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] == "/livez":
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
