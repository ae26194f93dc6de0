"""Shoppers that go on asking, whatever happens."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from itertools import count

import httpx

from tests.support.waiting import until

DEADLINE_MS = 30_000
"""So long that no answer is cut short by a busy machine: what is missing then is a fault."""
_PAUSE_S = 0.01
_LETTERS = str.maketrans("0123456789", "abcdefghij")


def numbered(pattern: str, number: int) -> str:
    """``pattern`` with a word for the number, since rewrites have to keep the digits of a query."""
    return pattern.format(str(number).translate(_LETTERS))


def endless(pattern: str) -> Callable[[], str]:
    """Queries that differ, after a pattern with ``{}``."""
    numbers = count()
    return lambda: numbered(pattern, next(numbers))


class Traffic:
    """What was asked and how it was answered.

    Args:
        client: of the service.
        kinds: of requests by name, each with what makes the next query.
        statuses: that an answer may have.
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        kinds: Mapping[str, Callable[[], str]],
        statuses: frozenset[str],
    ) -> None:
        self._client = client
        self._kinds = kinds
        self._statuses = statuses
        self.sources: Counter[tuple[str, str]] = Counter()
        """Answers by kind of the request and ``source``."""

    def answered(self, kind: str) -> int:
        """Requests of a kind that have been answered."""
        return sum(n for (of, _), n in self.sources.items() if of == kind)

    async def more(self, n: int = 10) -> None:
        """Wait until ``n`` more requests of each kind have been asked and answered."""
        # One may have been under way.
        goal = {kind: self.answered(kind) + n + 1 for kind in self._kinds}
        await until(lambda: all(self.answered(kind) >= most for kind, most in goal.items()))

    async def until_seen(self, kind: str, source: str) -> None:
        """Wait until a further answer to a request of that kind came from ``source``."""
        before = self.sources[kind, source]
        await until(lambda: self.sources[kind, source] > before)

    async def ask(self, kind: str) -> None:
        """Ask one question; fails unless it is answered as it should be."""
        body = {"query": self._kinds[kind](), "deadline_ms": DEADLINE_MS}
        response = await self._client.post("/rewrite", json=body)
        assert response.status_code == 200, f"{kind}: {response.status_code} {response.text}"
        answer = response.json()
        assert answer["status"] in self._statuses, f"{kind}: {response.text}"
        self.sources[kind, answer["source"]] += 1

    async def run(self, kind: str) -> None:
        """Ask one question after the other until cancelled."""
        while True:
            await self.ask(kind)
            await asyncio.sleep(_PAUSE_S)


@asynccontextmanager
async def asking(
    client: httpx.AsyncClient,
    kinds: Mapping[str, Callable[[], str]],
    *,
    statuses: frozenset[str] = frozenset({"ok"}),
    at_once: int = 1,
) -> AsyncIterator[Traffic]:
    """Traffic for as long as the block lasts; the first answer that is wrong ends both.

    Args:
        client: of the service.
        kinds: of requests by name, each with what makes the next query.
        statuses: that an answer may have.
        at_once: requests of each kind at a time.
    """
    traffic = Traffic(client, kinds, statuses)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(traffic.run(kind)) for kind in kinds for _ in range(at_once)]
        yield traffic
        for task in tasks:
            task.cancel()
