"""Fixtures for the whole test suite."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from hypothesis import settings

from tests.support.redis_server import RedisServer

if TYPE_CHECKING:
    from tests.support.service import Serve

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

LONGEST_FIRST = (
    "tests/integration/test_training.py", "tests/ray", "tests/integration/test_service.py",
    "tests/integration/test_engine_supervised.py", "tests/integration/test_versions_live.py",
    "tests/integration/test_engine.py",
    "tests/integration/test_materialise.py", "tests/integration/test_read_only.py",
    "tests/browser", "tests/chaos/test_redis_faults.py",
)  # fmt: skip
"""The groups that take minutes: a worker that begins one last would be waited for by all others."""


def group_of(nodeid: str) -> str:
    """The file of a test, or its folder: its tests share what they start, so one worker has all."""
    path = PurePosixPath(nodeid.partition("::")[0])
    # One cluster, one browser.
    return str(path.parent if str(path.parent) in ("tests/ray", "tests/browser") else path)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Order tests as :data:`LONGEST_FIRST` says, those of a group in a row."""
    rank = {group: number for number, group in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: rank.get(group_of(item.nodeid), len(rank)))


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """How ``pytest -n 2 --dist loadscope`` divides tests: by :func:`group_of`, longest first."""
    if config.getvalue("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):  # type: ignore[misc] # xdist is untyped
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    # In the order of collection, not by the number of tests.
    config.option.loadscopereorder = False
    return ByGroup(config, log)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A running Redis of the test's own."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts services on scripted engines, and stops them at the end of the test."""
    # Not every test needs what the service imports.
    from tests.support.service import serving

    async with serving() as start:
        yield start


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a developer has configured for a real service must not reach the tests."""
    for name in list(os.environ):
        if name.startswith("REQUERY_"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _logging_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A test that configures logging changes no other test's lines, in whichever order they run."""
    configure, configured, config = (
        structlog.configure,
        structlog.is_configured(),
        structlog.get_config(),
    )

    def without_keeping(**options: Any) -> None:
        # A kept logger goes on to write where the test that first used it did.
        configure(**(options | {"cache_logger_on_first_use": False}))

    monkeypatch.setattr(structlog, "configure", without_keeping)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    if configured:
        configure(**config)
    else:
        structlog.reset_defaults()
