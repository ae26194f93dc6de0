"""transformers behind FastAPI as a peer."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import orjson

from loadtests.bench.child import Child, send
from loadtests.bench.hf_server import MOST_QUERIES
from loadtests.bench.peer import PeerFailed, Work
from loadtests.bench.versions import BenchVersions
from loadtests.client import HttpTransport
from loadtests.exchange import NoReply
from tests.support.redis_server import free_port


class TransformersPeer:
    """:mod:`loadtests.bench.hf_server` in a process of its own.

    Args:
        versions: where the bench version is.
        version: its name.
        folder: for its log.
    """

    name = "transformers + FastAPI"

    def __init__(self, versions: BenchVersions, version: str, folder: Path) -> None:
        port = free_port()
        self._url = f"http://127.0.0.1:{port}"
        self._child = Child(
            [sys.executable, "-m", "loadtests.bench.hf_server", version, str(port)],
            folder / "hf_server.log",
            versions.settings,
        )
        self._transport = HttpTransport(self._url)
        self._work = Work()

    @property
    def setup(self) -> dict[str, Any]:
        """See :class:`Peer`."""
        return {
            "dtype": "bfloat16",
            "threads": "as the service's engine",
            "batching": f"what waits, at most {MOST_QUERIES} queries",
        }

    async def start(self) -> None:
        """See :class:`Peer`."""
        self._child.start()
        await self._child.until_answers(self._url, "/health")
        await self._transport.__aenter__()

    async def ask(self, query: str) -> None:
        """See :class:`Peer`."""
        try:
            code, _, content = await self._transport.fetch(
                "POST",
                "/rewrite",
                orjson.dumps({"query": query}),
                {"content-type": "application/json"},
            )
        except NoReply as error:
            raise PeerFailed(f"no answer: {error.failure.value}") from error
        if code != 200:
            raise PeerFailed(f"answered {code}: {content[:300].decode(errors='replace')}")
        told = orjson.loads(content)
        self._work += Work(told["prompt"], told["generated"], len(told["rewrites"]))

    async def work(self) -> Work:
        """See :class:`Peer`."""
        return self._work

    def freeze(self) -> None:
        """See :class:`Peer`."""
        send(self._child.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """See :class:`Peer`."""
        send(self._child.pid, signal.SIGCONT)

    async def close(self) -> None:
        """See :class:`Peer`."""
        await self._transport.__aexit__(None, None, None)
        await self._child.close()
