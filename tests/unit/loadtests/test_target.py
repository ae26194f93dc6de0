from __future__ import annotations

from pathlib import Path

import pytest

from loadtests.processes import ServerFailed
from loadtests.target import Target


def test_the_callers_own_servers_and_keys_are_not_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUERY_REDIS_URL", "redis://production")
    monkeypatch.setenv("REQUERY_ADMIN_KEY", "0123456789abcdef")
    monkeypatch.setenv("REQUERY_HOST", "0.0.0.0")
    monkeypatch.setenv("REQUERY_ENGINE_THREADS", "1")
    environment = Target(tmp_path, {"REQUERY_LOG_LEVEL": "error"}).environment
    ours = {name: value for name, value in environment.items() if name.startswith("REQUERY_")}
    assert int(ours.pop("REQUERY_PORT")) > 0
    assert ours == {
        "REQUERY_HOST": "127.0.0.1",
        "REQUERY_ENGINE_THREADS": "1",
        "REQUERY_LOG_LEVEL": "error",
    }


def test_the_default_deadline_is_the_services(tmp_path: Path) -> None:
    assert Target(tmp_path).default_deadline_s == 2.0
    chosen = Target(tmp_path, {"REQUERY_DEFAULT_DEADLINE_MS": "300"})
    assert chosen.default_deadline_s == 0.3


@pytest.mark.integration
async def test_a_service_that_cannot_start_is_told_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(ServerFailed, match="'nobody'"):
        async with Target(tmp_path, {"REQUERY_DEFAULT_VERSION": "nobody"}):
            pass
