"""HTTP client of the load tests; it sends to this machine only.

aiohttp, because it is the fastest ready-made client: some 9,000 requests a second of one core,
where httpx manages 500.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Any, Self
from urllib.parse import urlsplit

import aiohttp
import orjson

from loadtests.exchange import Failure, NoReply, Reply, Request

_KEEP_ALIVE_S = 2.0
"""Shorter than uvicorn's 5 s, so that no request is sent on a connection just being closed."""
_STAGE = re.compile(r"([a-z]+);dur=([0-9.]+)")
_JSON = {"content-type": "application/json"}


class NotThisMachine(ValueError):
    """The URL names another machine."""


class HttpTransport:
    """Sends requests to one server.

    Args:
        url: scheme, host and port.

    Raises:
        NotThisMachine: the host is no loopback address.
    """

    def __init__(self, url: str) -> None:
        self._url = loopback(url)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            # No limit of connections: a bounded pool would queue requests here.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_ALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def send(self, request: Request) -> Reply:
        """Send a request; cancelling closes its connection.

        Raises:
            NoReply: no answer came.
        """
        code, headers, content = await self.fetch(
            request.method, request.path, request.body, {**_JSON, **request.headers}
        )
        timing = _STAGE.findall(headers.get("server-timing", ""))
        stages = {name: float(value) / 1000 for name, value in timing}
        return Reply(code, *_outcome(content), stages)

    async def get(self, path: str) -> tuple[int, bytes]:
        """Code and body of a ``GET``.

        Raises:
            NoReply: no answer came.
        """
        code, _, content = await self.fetch("GET", path, None, {})
        return code, content

    async def fetch(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[int, Any, bytes]:
        """Code, headers and body of an answer.

        Raises:
            NoReply: no answer came.
        """
        if self._session is None:
            raise RuntimeError("the transport is not open; use it as a context manager")
        try:
            async with self._session.request(
                method, self._url + path, data=body, headers=headers, allow_redirects=False
            ) as response:
                return response.status, response.headers, await response.read()
        except aiohttp.ClientConnectorError as error:
            raise NoReply(Failure.REFUSED) from error
        except aiohttp.ServerDisconnectedError as error:
            raise NoReply(Failure.DISCONNECTED) from error
        except aiohttp.ClientPayloadError as error:
            raise NoReply(Failure.CUT) from error
        except (aiohttp.ClientError, OSError) as error:
            raise NoReply(Failure.RESET) from error


def loopback(url: str) -> str:
    """``url`` without a path.

    Raises:
        NotThisMachine: the host is no loopback address.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        here = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        here = False
    if not here or parts.scheme != "http":
        raise NotThisMachine(f"{url}: load tests send to the loopback only, by http")
    return f"{parts.scheme}://{parts.netloc}"


def _outcome(content: bytes) -> tuple[str, str]:
    """``status`` and ``source`` of an answer; for a problem, the last part of its type."""
    try:
        answer = orjson.loads(content)
    except orjson.JSONDecodeError:
        return "", ""
    if not isinstance(answer, dict):
        return "", ""
    kind = answer.get("type")
    if isinstance(kind, str):
        return kind.rpartition(":")[2], ""
    return _text(answer.get("status")), _text(answer.get("source"))


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
