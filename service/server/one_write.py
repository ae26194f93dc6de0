"""Answers in one piece: status line, headers and body in one write.

uvicorn writes the headers and the body one after the other, and looks at every header with two
regular expressions. On a cache hit that is a fifth of all the time. An answer that is not of the
ordinary kind (a stream, an answer to ``HEAD``, one that names its own connection) is left to it.
"""

from __future__ import annotations

import re

from starlette.types import Message, Send
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

_UNUSUAL = frozenset({b"connection", b"transfer-encoding"})
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
"""What has no place in a header, besides the ends of lines."""


def in_one_piece(send: Send) -> Send:
    """``send`` of uvicorn's, for one request, with as few writes as there can be."""
    cycle = getattr(send, "__self__", None)
    if not isinstance(cycle, RequestResponseCycle) or cycle.scope["method"] == "HEAD":
        return send
    held: Message | None = None

    async def send_whole(message: Message) -> None:
        nonlocal held
        if message["type"] == "http.response.start" and held is None:
            held = message
            return
        if held is not None:
            start, held = held, None
            if not message.get("more_body") and _written(cycle, start, message.get("body", b"")):
                return
            await send(start)
        await send(message)

    return send_whole


def _written(cycle: RequestResponseCycle, start: Message, body: bytes) -> bool:
    """Whether it was an ordinary answer, which is now written; else nothing has been done."""
    if cycle.disconnected or cycle.response_started or cycle.flow.write_paused:
        return False
    lines = [STATUS_LINE[start["status"]]]
    headers = [*cycle.default_headers, *start["headers"]]
    length = None
    for name, value in headers:
        if name == b"content-length":
            length = value
        elif name in _UNUSUAL:
            return False
        lines.append(b"%b: %b\r\n" % (name, value))
    if length is None or int(length) != len(body):
        return False
    if not cycle.keep_alive:
        lines.append(b"connection: close\r\n")
    head = b"".join(lines)
    if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines) or _CONTROL.search(head):
        return False  # uvicorn says what is wrong with it
    cycle.response_started = cycle.response_complete = True
    cycle.waiting_for_100_continue = False
    cycle.chunked_encoding = False
    cycle.transport.write(b"%b\r\n%b" % (head, body))
    cycle.message_event.set()
    if not cycle.keep_alive:
        cycle.transport.close()
    cycle.on_response()
    return True
