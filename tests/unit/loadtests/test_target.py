from __future__ import annotations

from pathlib import Path

import pytest

from loadtests.target import Target, TargetFailed, until


def test_the_callers_own_servers_and_keys_are_not_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REQUERY_REDIS_URL", "redis://production")
    monkeypatch.setenv("REQUERY_ADMIN_KEY", "0123456789abcdef")
    monkeypatch.setenv("REQUERY_HOST", "0.0.0.0")
    monkeypatch.setenv("REQUERY_ENGINE_THREADS", "1")
    environment = Target(tmp_path, {"REQUERY_LOG_LEVEL": "error"})._environment
    ours = {name: value for name, value in environment.items() if name.startswith("REQUERY_")}
    assert ours == {
        "REQUERY_HOST": "127.0.0.1",
        "REQUERY_PORT": "0",
        "REQUERY_ENGINE_THREADS": "1",
        "REQUERY_LOG_LEVEL": "error",
    }


def test_the_default_deadline_is_the_services(tmp_path: Path) -> None:
    assert Target(tmp_path).default_deadline_s == 2.0
    chosen = Target(tmp_path, {"REQUERY_DEFAULT_DEADLINE_MS": "300"})
    assert chosen.default_deadline_s == 0.3


def test_nothing_is_asked_of_a_service_that_was_not_started(tmp_path: Path) -> None:
    with pytest.raises(TargetFailed, match="not been started"):
        _ = Target(tmp_path).transport


async def test_waiting_ends_with_what_is_waited_for_or_with_the_patience() -> None:
    asked = 0

    async def third_time() -> bool:
        nonlocal asked
        asked += 1
        return asked == 3

    async def never() -> bool:
        return False

    assert await until(third_time, 60.0, poll_s=0.0)
    assert not await until(never, 0.0, poll_s=0.0)


@pytest.mark.integration
async def test_a_service_that_cannot_start_is_told_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(TargetFailed, match="'nobody'"):
        async with Target(tmp_path, {"REQUERY_DEFAULT_VERSION": "nobody"}):
            pass
