"""HTTP/1.1 by hand, for tests of what a caller does between the lines."""

from __future__ import annotations

import json
import select
import socket
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class RawResponse:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def last(self) -> bool:
        """Whether it says that its connection is closed after it."""
        return self.headers.get("connection", "").lower() == "close"

    def json(self) -> Any:
        return json.loads(self.body)


def rewrite_request(query: str, **fields: object) -> bytes:
    """A whole ``POST /rewrite``."""
    body = json.dumps({"query": query, **fields}).encode()
    return post("/rewrite", body)


def post(path: str, body: bytes, *, declared: int | None = None) -> bytes:
    """A ``POST`` of JSON; ``declared`` is its Content-Length."""
    length = len(body) if declared is None else declared
    return (
        f"POST {path} HTTP/1.1\r\nhost: test\r\ncontent-type: application/json\r\n"
        f"content-length: {length}\r\n\r\n"
    ).encode() + body


def get(path: str, *headers: str) -> bytes:
    """A ``GET``."""
    lines = "".join(f"{header}\r\n" for header in headers)
    return f"GET {path} HTTP/1.1\r\nhost: test\r\n{lines}\r\n".encode()


class Caller:
    """A connection of a caller that blocks.

    Args:
        port: on this machine.
        patience_s: bounds each wait, in seconds.
    """

    def __init__(self, port: int, *, patience_s: float = 60.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=patience_s)
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, request: bytes) -> RawResponse:
        """Send a request and read its answer."""
        self.send(request)
        return self.read()

    def read(self) -> RawResponse:
        """The next answer.

        Raises:
            ConnectionError: the other side hung up before it was whole.
        """
        status = self._file.readline().split()
        if len(status) < 2:
            raise ConnectionError("hung up without an answer")
        headers: dict[str, str] = {}
        while (line := self._file.readline().strip()) != b"":
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        length = int(headers["content-length"])
        body = self._file.read(length)
        if len(body) < length:
            raise ConnectionError("hung up within the answer")
        return RawResponse(int(status[1]), headers, body)

    def hung_up(self) -> bool:
        """Wait until the other side closes; whatever it sends before that is dropped."""
        try:
            while self._file.read(65536):
                pass
        except ConnectionError:
            pass
        return True

    @property
    def closed_by_peer(self) -> bool:
        """Whether the other side has closed by now; what it has sent is left to read."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        try:
            return bool(poll.poll(0)) and self.socket.recv(1, socket.MSG_PEEK) == b""
        except ConnectionError:
            return True
