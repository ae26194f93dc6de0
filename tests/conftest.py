"""Fixtures for the whole test suite."""

from __future__ import annotations

import os
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
"""Integration tests with real engines: one at a time, since each takes every core and gigabytes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Say which integration tests ``pytest -n 2 --dist loadgroup`` must not run side by side."""
    for item in items:
        if item.get_closest_marker("integration"):
            # What a file shares, it starts once.
            path = item.path
            group = "engine" if path.name in ENGINE_FILES else f"{path.parent.name}/{path.name}"
            group = "browser" if path.parent.name == "browser" else group
            item.add_marker(pytest.mark.xdist_group(group))


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
