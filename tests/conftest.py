"""Fixtures for the whole test suite."""

from __future__ import annotations

import os
from typing import Any

import pytest
import structlog


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
