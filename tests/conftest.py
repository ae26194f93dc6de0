"""Fixtures for the whole test suite."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a developer has configured for a real service must not reach the tests."""
    for name in list(os.environ):
        if name.startswith("REQUERY_"):
            monkeypatch.delenv(name)
