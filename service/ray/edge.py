"""Middleware of Ray Serve's HTTP proxy: repeats lost requests, and answers as the service does.

When the ingress replica of a request dies, the proxy answers 500 in plain text. This middleware
sends the request to another replica, once, if that is safe. Otherwise, and for all other answers of
the proxy itself, it answers 503 with the problem document of the service.

The variable ``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`` of every Ray node names it.
"""

from __future__ import annotations

import structlog
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.problems import problem
from service.errors import NotReady
from service.telemetry.request_context import make_context

_log = structlog.get_logger(component="ray")

_OF_SERVE = "/-/"
"""Ray Serve's own health check and list of routes."""
_REPEATABLE = frozenset(
    prefix + path for prefix in ("", "/v1") for path in ("/rewrite", "/rewrite/batch", "/relevance")
)
"""POST requests that change nothing."""
_MAX_BODY = 2**20
"""Largest body of a request that is repeated, in bytes."""
_MARK = b"server-timing"
"""A header of every answer of the application, and of no other."""
_REQUEST_ID = b"x-request-id"


def middlewares() -> list[Middleware]:
    """The middlewares of the proxy: Ray Serve calls this."""
    return [Middleware(Edge)]


class Edge:
    """Middleware of Ray Serve's proxy.

    Args:
        app: the proxy.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["path"].startswith(_OF_SERVE):
            await self._app(scope, receive, send)
            return
        request = _StoredRequest(receive)
        answer = await self._try(scope, request, send)
        if answer.lost and request.complete and _repeatable(scope):
            _log.warning("request_repeated", path=scope["path"])
            request.rewind()
            answer = await self._try(scope, request, send)
        if not answer.given and not request.gone:
            await _refuse(scope, answer, receive, send)

    async def _try(self, scope: Scope, request: _StoredRequest, send: Send) -> _Answer:
        answer = _Answer(send)
        # The proxy writes into the scope, which the next try needs as it was.
        copy = {**scope, "headers": list(scope["headers"])}
        await self._app(copy, request.receive, answer.send)
        return answer


class _StoredRequest:
    """A request whose body can be received again.

    Args:
        receive: the server's.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: list[Message] = []
        self._at = 0
        self._bytes = 0
        self.gone = False
        """Whether the client has disconnected."""

    @property
    def complete(self) -> bool:
        """Whether the whole body is here and the client is still connected."""
        ended = bool(self._messages) and not self._messages[-1].get("more_body", False)
        return ended and self._bytes <= _MAX_BODY and not self.gone

    async def receive(self) -> Message:
        """The next message, stored or new."""
        if self._at < len(self._messages):
            self._at += 1
            return self._messages[self._at - 1]
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.gone = True
        else:
            self._bytes += len(message.get("body", b""))
            if self._bytes <= _MAX_BODY:
                self._messages.append(message)
                self._at += 1
        return message

    def rewind(self) -> None:
        """Start again with the first message."""
        self._at = 0


class _Answer:
    """Forwards answers of the application, and holds back those of the proxy itself.

    Args:
        send: the server's.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.given = False
        self.refused = False
        """Whether the proxy has refused the request."""
        self.headers: dict[bytes, bytes] = {}
        """Of the proxy's refusal."""

    @property
    def lost(self) -> bool:
        """Whether the replica died before it began to answer."""
        return not self.given and not self.refused

    async def send(self, message: Message) -> None:
        """See ASGI."""
        if message["type"] == "http.response.start" and not self.given:
            headers = [(bytes(name).lower(), bytes(value)) for name, value in message["headers"]]
            if all(name != _MARK for name, _ in headers):
                self.refused, self.headers = True, dict(headers)
                return
            self.given = True
            message = {**message, "headers": _with_one_id(headers)}
        if self.given:
            await self._send(message)


def _with_one_id(headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Without the request id that the proxy adds to the application's."""
    ids = [header for header in headers if header[0] == _REQUEST_ID]
    return [header for header in headers if header[0] != _REQUEST_ID] + ids[:1]


def _repeatable(scope: Scope) -> bool:
    return scope["method"] in ("GET", "HEAD") or scope["path"] in _REPEATABLE


async def _refuse(scope: Scope, answer: _Answer, receive: Receive, send: Send) -> None:
    why = "has no replica that can take it" if answer.refused else "lost the replica that had it"
    error = NotReady(f"the cluster {why}; try again shortly")
    context = make_context(scope["headers"])
    response = problem(error, context.request_id)
    response.headers["x-request-id"] = context.request_id
    response.headers["server-timing"] = f"total;dur={context.watch.elapsed() * 1000:.3f}"
    if (after := answer.headers.get(b"retry-after", b"")).isdigit():
        response.headers["retry-after"] = after.decode("ascii")
    await response(scope, receive, send)
