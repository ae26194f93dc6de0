"""One Ray cluster for all tests that need one: a start takes as long as most of them together."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.ray.cluster import RayCluster


@pytest.fixture(scope="session")
def nodes() -> Iterator[RayCluster]:
    """Two nodes, with nothing on them."""
    cluster = RayCluster.start(cpus=8)
    yield cluster
    cluster.__exit__(None, None, None)
