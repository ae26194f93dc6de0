"""A client of Requery for search backends: :class:`AsyncRequery`, and :class:`Requery` for threads.

This file needs only Python 3.11 and httpx, so it can be copied.

    with Requery("http://localhost:8000", deadline_ms=150) as requery:
        answer = requery.rewrite("steele stake")
        texts = ["steele stake", *(rewrite.text for rewrite in answer.rewrites)]

A search must not fail because rewrites are missing. After a deadline, an overload, a failure of the
service or an invalid response, the client returns an answer without rewrites; its ``status`` and
``reason`` say why. It raises :class:`Rejected` only for mistakes in the program or its
configuration.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Self, TypedDict, TypeVar, Unpack

import httpx

SLACK_MS = 25  # network time in addition to the deadline
COOL_DOWN_S = 1.0  # pause after a refused connection or repeated time-outs
LATE_IN_A_ROW = 5  # consecutive time-outs before the pause
MAX_CHARS = 4096  # most characters of a query that the service reads

_PROBLEM = "urn:requery:problem:"
_ABOUT_THE_TEXT = {"invalid-query", "query-too-long"}
_TRY_LATER = {408, 409, 425, 429}
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A rewrite, and the probability that it means what the query means."""

    text: str
    relevance: float


@dataclass(frozen=True, slots=True)
class Answer:
    """Rewrites of one query, best first; without any, search with the query alone.

    ``status`` is the service's (ok, partial, timeout, none, fallback) and ``query`` the normal
    form. Without a response, ``status`` is ``timeout``, ``none`` (the text cannot be rewritten) or
    ``unavailable``, ``reason`` says why (such as ``overloaded``), and ``query`` is as given.
    """

    query: str
    rewrites: tuple[Rewrite, ...] = ()
    status: str = "unavailable"
    source: str = "none"
    reason: str | None = None
    model_version: str | None = None
    request_id: str | None = None


class Rejected(Exception):
    """The service rejects this call: a wrong field, key or version.

    ``status`` is the HTTP status, ``slug`` the kind of problem, such as ``unknown-version``.
    """

    def __init__(self, status: int, slug: str, detail: str) -> None:
        super().__init__(f"{status} {slug}: {detail}")
        self.status, self.slug = status, slug


class Unavailable(Exception):
    """The service is unavailable; only ``relevance`` raises it."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"no answer: {reason}")
        self.reason = reason


class Options(TypedDict, total=False):
    """Options of a client."""

    api_key: str | None
    deadline_ms: int  # time limit of a call; default: 500
    max_connections: int  # default: 100
    verify: ssl.SSLContext | bool
    transport: httpx.AsyncBaseTransport | None  # for tests and unusual networks


class Wishes(TypedDict, total=False):
    """Options of a call."""

    deadline_ms: int
    max_rewrites: int  # not of relevance
    min_relevance: float  # not of relevance
    model_version: str
    unit_id: str  # user or session, for experiments; only of a single rewrite
    request_id: str
    traceparent: str  # W3C Trace Context


class AsyncRequery:
    """Calls Requery on asyncio; close it, or use it as a context manager.

    Every call ends by its deadline plus ``SLACK_MS``, connecting included. After a refused
    connection, or ``LATE_IN_A_ROW`` time-outs in a row, calls fail at once for ``COOL_DOWN_S``.
    Proxies and credentials in the environment are ignored.
    """

    def __init__(self, url: str, **options: Unpack[Options]) -> None:
        key, most = options.get("api_key"), options.get("max_connections", 100)
        self.deadline_ms = options.get("deadline_ms", 500)
        self._client = httpx.AsyncClient(
            base_url=url,
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=None,  # noqa: S113 - the deadline covers the whole call
            limits=httpx.Limits(max_connections=most, keepalive_expiry=30.0),
            transport=options.get("transport"),
            verify=options.get("verify", True),
            trust_env=False,
        )
        self._late = 0
        self._cool_at = 0.0

    async def rewrite(self, query: str, **wishes: Unpack[Wishes]) -> Answer:
        """Rewrites of ``query``.

        Raises:
            Rejected: the call is invalid.
        """
        try:
            content = await self._ask("/rewrite", {"query": query[:MAX_CHARS]}, wishes)
            return _answer(content)
        except Unavailable as gone:
            return _without(query, gone)

    async def rewrite_batch(
        self, queries: Sequence[str], **wishes: Unpack[Wishes]
    ) -> tuple[Answer, ...]:
        """Answers to at most 256 queries, in order, by one deadline.

        Raises:
            Rejected: the call is invalid.
        """
        texts = [query[:MAX_CHARS] for query in queries]
        try:
            content = await self._ask("/rewrite/batch", {"queries": texts}, wishes)
            answers = _values(content, "answers", len(queries))
        except Unavailable as gone:
            return tuple(_without(query, gone) for query in queries)
        return tuple(_member(query, one) for query, one in zip(queries, answers, strict=True))

    async def relevance(
        self, pairs: Sequence[tuple[str, str]], **wishes: Unpack[Wishes]
    ) -> tuple[float, ...]:
        """The relevance of at most 256 pairs of query and rewrite, in order.

        Raises:
            Rejected: the call is invalid.
            Unavailable: the service is unavailable.
        """
        body = {"pairs": [{"query": query, "rewrite": rewrite} for query, rewrite in pairs]}
        content = await self._ask("/relevance", body, wishes)
        try:
            return tuple(map(float, _values(content, "relevance", len(pairs))))
        except (TypeError, ValueError):
            raise Unavailable("unreadable") from None

    async def aclose(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _ask(self, path: str, body: dict[str, Any], wishes: Wishes) -> Mapping[str, Any]:
        """The body of a 200; raises Rejected or Unavailable."""
        if time.monotonic() < self._cool_at:
            raise Unavailable("cooling-down")
        fields: dict[str, Any] = {"deadline_ms": self.deadline_ms, **wishes}
        headers = {"content-type": "application/json"}
        for field, name in (("request_id", "x-request-id"), ("traceparent", "traceparent")):
            value = fields.pop(field, None)
            # These often come from outside: an invalid header must not fail the call.
            if isinstance(value, str) and value.isascii() and value.isprintable():
                headers[name] = value
        # A query may have a lone surrogate, which UTF-8 cannot encode.
        content = json.dumps(body | fields, ensure_ascii=False).encode(errors="replace")
        try:
            async with asyncio.timeout((fields["deadline_ms"] + SLACK_MS) / 1000):
                response = await self._client.post(path, content=content, headers=headers)
        except TimeoutError:
            self._late += 1
            if self._late >= LATE_IN_A_ROW:
                self._cool_down()
            raise Unavailable("deadline") from None
        except httpx.HTTPError as error:
            if isinstance(error, httpx.ConnectError):
                self._cool_down()
            raise Unavailable(type(error).__name__) from error
        self._late = 0
        return _content(response)

    def _cool_down(self) -> None:
        self._late, self._cool_at = 0, time.monotonic() + COOL_DOWN_S


class Requery:
    """The same without asyncio; threads may share one.

    An event loop in its own thread runs the calls, which bounds their time. The first call starts
    it, again in a forked process.
    """

    def __init__(self, url: str, **options: Unpack[Options]) -> None:
        self._make: Callable[[], AsyncRequery] = lambda: AsyncRequery(url, **options)
        self._client = self._make()
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread()

    def rewrite(self, query: str, **wishes: Unpack[Wishes]) -> Answer:
        """As :meth:`AsyncRequery.rewrite`."""
        return self._run(lambda client: client.rewrite(query, **wishes))

    def rewrite_batch(self, queries: Sequence[str], **wishes: Unpack[Wishes]) -> tuple[Answer, ...]:
        """As :meth:`AsyncRequery.rewrite_batch`."""
        return self._run(lambda client: client.rewrite_batch(queries, **wishes))

    def relevance(
        self, pairs: Sequence[tuple[str, str]], **wishes: Unpack[Wishes]
    ) -> tuple[float, ...]:
        """As :meth:`AsyncRequery.relevance`."""
        return self._run(lambda client: client.relevance(pairs, **wishes))

    def close(self) -> None:
        """Close all connections and end the thread; a later call starts another."""
        with self._lock:
            if self._loop is not None and self._thread.is_alive():
                asyncio.run_coroutine_threadsafe(self._client.aclose(), self._loop).result()
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._thread.join()
                self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, call: Callable[[AsyncRequery], Coroutine[Any, Any, _T]]) -> _T:
        with self._lock:
            # In a forked process the thread is dead and the connections are the parent's.
            if self._loop is None or not self._thread.is_alive():
                self._loop, self._client = asyncio.new_event_loop(), self._make()
                self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
                self._thread.start()
            running = asyncio.run_coroutine_threadsafe(call(self._client), self._loop)
        return running.result()


def _content(response: httpx.Response) -> Mapping[str, Any]:
    try:
        content = response.json()
    except ValueError:
        content = None
    content = content if isinstance(content, dict) else {}
    if response.status_code != httpx.codes.OK:
        _refuse(response.status_code, content)
    return content


def _refuse(status: int, problem: Mapping[str, Any]) -> NoReturn:
    """Raise the error for a response other than 200."""
    kind = str(problem.get("type"))
    ours = kind.startswith(_PROBLEM)
    slug = kind.removeprefix(_PROBLEM) if ours else f"http-{status}"
    # A response from elsewhere, such as a proxy's 404, says nothing about the call.
    final = 400 <= status < 500 and status not in _TRY_LATER and (ours or status in (401, 403))
    if final and slug not in _ABOUT_THE_TEXT:
        raise Rejected(status, slug, str(problem.get("detail")))
    raise Unavailable(slug)


def _answer(content: Mapping[str, Any]) -> Answer:
    try:
        return Answer(
            query=str(content["query"]),
            rewrites=tuple(
                Rewrite(str(one["text"]), float(one["relevance"])) for one in content["rewrites"]
            ),
            status=str(content["status"]),
            source=str(content["source"]),
            model_version=str(content["model_version"]),
            request_id=str(content["request_id"]),
        )
    except (LookupError, TypeError, ValueError):
        raise Unavailable("unreadable") from None


def _member(query: str, content: Any) -> Answer:
    """One answer of a batch, or a problem."""
    try:
        if isinstance(content, dict) and isinstance(content.get("status"), int):
            _refuse(content["status"], content)
        return _answer(content)
    except Unavailable as gone:
        return _without(query, gone)


def _values(content: Mapping[str, Any], name: str, count: int) -> list[Any]:
    values = content.get(name)
    if isinstance(values, list) and len(values) == count:
        return values
    raise Unavailable("unreadable")


def _without(query: str, gone: Unavailable) -> Answer:
    status = "timeout" if gone.reason == "deadline" else "unavailable"
    status = "none" if gone.reason in _ABOUT_THE_TEXT else status
    return Answer(query, status=status, reason=gone.reason)
