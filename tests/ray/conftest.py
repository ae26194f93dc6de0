"""One Ray cluster for all tests that need one: a start takes as long as most of them together."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.ray.cluster import RayCluster
from tests.support.redis_server import RedisServer


@pytest.fixture(scope="session")
def nodes() -> Iterator[RayCluster]:
    """Two nodes, with nothing on them."""
    cluster = RayCluster.start(cpus=8)
    yield cluster
    cluster.__exit__(None, None, None)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A running Redis of the test's own."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()
