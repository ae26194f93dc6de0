"""Around the proxy: requests that are given to another replica, and what is said of those lost."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from service.ray.edge import Edge, middlewares
from tests.contract.wire import JSON, Answer, Sent, exchange

Proxied = Callable[[int, Scope, Receive, Send], Awaitable[None]]
ANSWER = [(b"server-timing", b"total;dur=1"), (b"X-Request-ID", b"ours"), (b"x-request-id", b"its")]


class Proxy:
    """Stands in for Ray Serve's proxy: what it does is told for each try."""

    def __init__(self, *tries: Proxied) -> None:
        self._tries = tries
        self.bodies: list[bytes] = []
        self.scopes: list[Scope] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        number = len(self.scopes)
        self.scopes.append(scope)
        scope["headers"].append((b"x-request-id", b"made up"))
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message["body"]
            if not message.get("more_body"):
                break
        self.bodies.append(body)
        await self._tries[number](number, scope, receive, send)


async def answers(_number: int, _scope: Scope, _receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": ANSWER})
    await send({"type": "http.response.body", "body": b"yes"})


async def loses(_number: int, _scope: Scope, _receive: Receive, _send: Send) -> None:
    """As the proxy ends when a replica has died: without a word."""


def says(status: int, *headers: tuple[bytes, bytes]) -> Proxied:
    async def say(_number: int, _scope: Scope, _receive: Receive, send: Send) -> None:
        plain = [(b"content-type", b"text/plain"), *headers]
        await send({"type": "http.response.start", "status": status, "headers": plain})
        await send({"type": "http.response.body", "body": b"words of its own"})

    return say


async def ask(proxy: Proxy, sent: Sent) -> Answer:
    return await exchange(Edge(proxy), sent)


REWRITE = Sent("POST", b"/rewrite", (JSON,), b'{"query":"steele stake"}')
CHANGE = Sent("PUT", b"/routing", (JSON,), b"{}")


def problem(answer: Answer) -> dict[str, Any]:
    assert answer.status == 503
    assert answer.media_type == "application/problem+json"
    assert answer.header("retry-after")
    content: dict[str, Any] = answer.json()
    assert content["request_id"] == answer.header("x-request-id")
    return content


async def test_an_answer_passes_with_one_request_id() -> None:
    proxy = Proxy(answers)
    answer = await ask(proxy, REWRITE)
    assert (answer.status, answer.body) == (200, b"yes")
    assert [value for name, value in answer.headers if name == b"x-request-id"] == [b"ours"]


async def test_a_request_whose_replica_died_is_given_to_another() -> None:
    proxy = Proxy(loses, answers)
    answer = await ask(proxy, REWRITE)
    assert (answer.status, answer.body) == (200, b"yes")
    assert proxy.bodies == [REWRITE.body] * 2
    names = [name for name, _ in proxy.scopes[1]["headers"]]
    assert names.count(b"x-request-id") == 1, "the second try has the headers of the first"


async def test_the_second_loss_is_a_503() -> None:
    proxy = Proxy(loses, loses)
    content = problem(await ask(proxy, REWRITE))
    assert "lost the replica" in content["detail"]
    assert len(proxy.scopes) == 2


async def test_a_change_is_never_made_twice() -> None:
    proxy = Proxy(loses, answers)
    problem(await ask(proxy, CHANGE))
    assert len(proxy.scopes) == 1


async def test_one_that_is_too_long_to_keep_is_not_repeated() -> None:
    proxy = Proxy(loses, answers)
    problem(await ask(proxy, Sent("POST", b"/rewrite", (JSON,), b"x" * (2**20 + 1))))
    assert len(proxy.scopes) == 1


@pytest.mark.parametrize("status", [404, 408, 500, 503])
async def test_what_the_proxy_says_itself_is_a_503_and_is_not_repeated(status: int) -> None:
    proxy = Proxy(says(status))
    answer = await ask(proxy, REWRITE)
    assert "no replica" in problem(answer)["detail"]
    assert b"words" not in answer.body
    assert len(proxy.scopes) == 1


async def test_when_to_come_again_is_kept() -> None:
    answer = await ask(Proxy(says(503, (b"retry-after", b"7"))), REWRITE)
    assert problem(answer)
    assert answer.header("retry-after") == "7"


async def test_the_proxy_s_own_paths_are_its_own() -> None:
    answer = await ask(Proxy(says(200)), Sent("GET", b"/-/healthz"))
    assert (answer.status, answer.body) == (200, b"words of its own")


async def test_nobody_is_told_anything_once_they_have_left() -> None:
    async def waits(_number: int, _scope: Scope, receive: Receive, _send: Send) -> None:
        assert (await receive())["type"] == "http.disconnect"

    proxy = Proxy(waits, answers)
    told: list[Message] = []
    messages: list[Message] = [
        {"type": "http.request", "body": b"{}", "more_body": False},
        {"type": "http.disconnect"},
    ]

    async def receive() -> Message:
        await asyncio.sleep(0)
        return messages.pop(0)

    async def send(message: Message) -> None:
        told.append(message)

    scope = {"type": "http", "method": "POST", "path": "/rewrite", "headers": []}
    await Edge(proxy)(scope, receive, send)
    assert told == []
    assert len(proxy.scopes) == 1


def test_it_is_what_the_import_path_gives() -> None:
    (one,) = middlewares()
    made: Any = one.cls
    assert made is Edge
