"""Fixtures for the whole test suite."""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from typing import Any

import pytest
import structlog

ENGINE_FILES = frozenset(
    {
        "test_engine.py", "test_engine_death.py", "test_engine_faults.py",
        "test_engine_supervised.py", "test_materialise.py", "test_service.py", "test_training.py",
        "test_versions_live.py",
    }
)  # fmt: skip
"""Integration tests with real engines: like those with a Ray cluster they come one at a time, since
each takes every core and gigabytes."""


def group_of(nodeid: str) -> str:
    """Tests of one group run one after the other: those of a file share what they start."""
    path = PurePosixPath(nodeid.partition("::")[0])
    if path.name in ENGINE_FILES or path.parent.name == "ray":
        return "heavy"
    return "browser" if path.parent.name == "browser" else str(path)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """How ``pytest -n 2 --dist loadscope`` divides integration tests: by :func:`group_of`."""
    if config.getvalue("dist") != "loadscope":
        return None
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):  # type: ignore[misc] # xdist is untyped
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return ByGroup(config, log)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a developer has configured for a real service must not reach the tests."""
    for name in list(os.environ):
        if name.startswith("REQUERY_"):
            monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def _no_logger_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is kept writes where the test that first used it did, whoever asks it later."""
    configure = structlog.configure

    def without_keeping(**options: Any) -> None:
        configure(**(options | {"cache_logger_on_first_use": False}))

    monkeypatch.setattr(structlog, "configure", without_keeping)
