from __future__ import annotations

import pytest

from tests.support.service import Serve, Service


@pytest.fixture
async def service(serve: Serve) -> Service:
    return await serve()
