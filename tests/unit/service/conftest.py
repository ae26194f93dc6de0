from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.support.service import Serve, Service, serving


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    async with serving() as start:
        yield start


@pytest.fixture
async def service(serve: Serve) -> Service:
    return await serve()
