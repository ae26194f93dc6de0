"""What the fault tests share: a Redis server, and services on scripted engines."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.support.redis_server import RedisServer
from tests.support.service import Serve, serving


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A running Redis of the test's own."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts services, and stops them at the end of the test."""
    async with serving() as start:
        yield start
