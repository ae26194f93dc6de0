"""One HTTP exchange with an application in process, from raw bytes, as the server hands them over.

An HTTP client would refuse most of what hostile callers send.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import unquote

import orjson
from starlette.types import ASGIApp, Message

JSON = (b"content-type", b"application/json")

_HANGS_S = 100.0
"""An exchange that takes longer than this never ends."""


@dataclass(frozen=True)
class Sent:
    """A request: bytes on the wire, but for the framing."""

    method: str
    target: bytes
    """Path and query string, percent-encoded."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    body: bytes = b""

    @property
    def path(self) -> str:
        """The decoded path, as applications see it."""
        return unquote(self.target.partition(b"?")[0].decode("ascii"))

    def __str__(self) -> str:
        headers = "".join(f" -H {name!r}:{value[:200]!r}" for name, value in self.headers)
        return f"{self.method} {self.target[:300]!r}{headers} {self.body[:600]!r}"


@dataclass
class Answer:
    """A response."""

    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """The first value of a header."""
        wanted = name.lower().encode()
        return next((v.decode("latin-1") for k, v in self.headers if k.lower() == wanted), None)

    @cached_property
    def media_type(self) -> str:
        """The content type without its parameters."""
        return (self.header("content-type") or "").partition(";")[0].strip()

    def json(self) -> Any:
        """The body."""
        return orjson.loads(self.body)


async def exchange(app: ASGIApp, sent: Sent) -> Answer:
    """Send a request from this machine and wait for the whole answer.

    Raises:
        TimeoutError: there is none, ever.
        Exception: whatever comes out of the application.
    """
    answer = Answer()
    done = asyncio.Event()
    unread = [sent.body]

    async def receive() -> Message:
        if unread:
            return {"type": "http.request", "body": unread.pop(), "more_body": False}
        await done.wait()  # nobody hangs up before the answer is there
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = [(bytes(k), bytes(v)) for k, v in message.get("headers", ())]
        elif message["type"] == "http.response.body":
            answer.body += message.get("body", b"")
            if not message.get("more_body", False):
                done.set()

    path, _, query = sent.target.partition(b"?")
    headers = [(name.lower(), value) for name, value in sent.headers]
    if sent.body or sent.method in ("POST", "PUT"):
        headers.append((b"content-length", str(len(sent.body)).encode()))
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "scheme": "http",
        "method": sent.method,
        "root_path": "",
        "path": sent.path,
        "raw_path": path,
        "query_string": query,
        "headers": headers,
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 8000),
        "state": {},
    }
    async with asyncio.timeout(_HANGS_S):
        await app(scope, receive, send)
    return answer
