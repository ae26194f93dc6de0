"""An ordinary answer is one write, and says just what uvicorn's two would have said."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

import pytest
from starlette.types import Message, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from service.server.one_write import in_one_piece


class Wire:
    """A transport that remembers, with one request's cycle on it."""

    def __init__(self, method: str = "POST", *, keep_alive: bool = True) -> None:
        self.writes: list[bytes] = []
        self.closed = False
        self.completed = 0
        self.flow = FlowControl(cast("asyncio.Transport", self))
        self.cycle = RequestResponseCycle(
            scope=cast("Any", {"method": method}),
            transport=cast("asyncio.Transport", self),
            flow=self.flow,
            logger=logging.getLogger("test"),
            access_logger=logging.getLogger("test"),
            access_log=False,
            default_headers=[(b"date", b"today")],
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=keep_alive,
            on_response=self.complete,
        )

    def write(self, data: bytes) -> None:
        self.writes.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed

    def complete(self) -> None:
        self.completed += 1

    @property
    def state(self) -> tuple[Any, ...]:
        cycle = self.cycle
        return (
            b"".join(self.writes), self.closed, self.completed, cycle.response_started,
            cycle.response_complete, cycle.message_event.is_set(), cycle.keep_alive,
        )  # fmt: skip


def start(*headers: tuple[bytes, bytes], status: int = 200) -> Message:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(content: bytes, *, more: bool = False) -> Message:
    return {"type": "http.response.body", "body": content, "more_body": more}


LENGTH = (b"content-length", b"2")
ORDINARY = [start((b"x-a", b"b; c"), LENGTH), body(b"{}")]
OTHERS = {
    "a stream": [start(), body(b"a", more=True), body(b"b")],
    "a stream of known length": [start(LENGTH), body(b"a", more=True), body(b"b")],
    "no length": [start(), body(b"{}")],
    "its own connection": [start((b"connection", b"close"), LENGTH), body(b"{}")],
    "nothing": [start(status=204), body(b"")],
}


async def both(messages: list[Message], **options: Any) -> tuple[Wire, Wire]:
    """Ours and uvicorn's own, after the same messages."""
    ours, theirs = Wire(**options), Wire(**options)
    send = in_one_piece(cast("Send", ours.cycle.send))
    for message in messages:
        await send(dict(message))
        await theirs.cycle.send(cast("Any", dict(message)))
    return ours, theirs


@pytest.mark.parametrize("keep_alive", [True, False])
async def test_an_ordinary_answer_is_one_write(keep_alive: bool) -> None:
    ours, theirs = await both(ORDINARY, keep_alive=keep_alive)
    assert ours.state == theirs.state
    assert len(ours.writes) == 1


@pytest.mark.parametrize("messages", OTHERS.values(), ids=OTHERS)
async def test_every_other_answer_is_as_it_was(messages: list[Message]) -> None:
    ours, theirs = await both(messages)
    assert ours.state == theirs.state


async def test_an_answer_to_head_has_no_body() -> None:
    ours, theirs = await both(ORDINARY, method="HEAD")
    assert ours.state == theirs.state
    assert not b"".join(ours.writes).endswith(b"{}")


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: b", b"a\nb", b"a\rb", b"a\0b", b"a\x7fb"])
async def test_no_header_can_hold_another_one(value: bytes) -> None:
    wire = Wire()
    send = in_one_piece(cast("Send", wire.cycle.send))
    await send(start((b"x-a", value), LENGTH))
    with pytest.raises(RuntimeError, match="Invalid HTTP header"):
        await send(body(b"{}"))
    assert wire.writes == []


@pytest.mark.parametrize("content", [b"{", b"{}}"])
async def test_a_body_has_the_length_that_was_said(content: bytes) -> None:
    wire = Wire()
    send = in_one_piece(cast("Send", wire.cycle.send))
    await send(start(LENGTH))
    with pytest.raises(RuntimeError, match="Response content"):
        await send(body(content))


async def test_nothing_is_written_to_a_caller_who_has_left() -> None:
    wire = Wire()
    wire.cycle.disconnected = True
    send = in_one_piece(cast("Send", wire.cycle.send))
    for message in ORDINARY:
        await send(dict(message))
    assert wire.writes == []


async def test_a_caller_who_does_not_read_is_waited_for() -> None:
    wire = Wire()
    wire.flow.write_paused = True
    wire.flow._is_writable_event.clear()
    send = in_one_piece(cast("Send", wire.cycle.send))
    await send(dict(ORDINARY[0]))
    sending = asyncio.create_task(cast("Any", send(dict(ORDINARY[1]))))
    await asyncio.sleep(0)
    assert wire.writes == []
    wire.flow.resume_writing()
    await sending
    assert b"".join(wire.writes).endswith(b"{}")


async def test_other_senders_are_left_alone() -> None:
    async def send(_message: Message) -> None:
        """Nothing."""

    assert in_one_piece(send) is send
