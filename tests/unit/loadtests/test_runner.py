from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import orjson
import pytest
import typer

from loadtests import runner
from loadtests.queries import Queries
from loadtests.report import Report, Row
from loadtests.runner import Context, main


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "WORK", tmp_path)


def test_a_part_that_fails_is_reported_and_the_others_are_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Context] = []

    async def broken(context: Context) -> Report:
        raise ExceptionGroup("several", [ValueError("no room")])

    async def works(context: Context) -> Report:
        seen.append(context)
        return Report("hits", {"throughput": []}, (Row("a", "1"),))

    out = tmp_path / "bench.json"
    with pytest.raises(typer.Exit) as exit_:
        main([broken, works], out, seed=3, head={"version": "sft-1"})
    assert exit_.value.exit_code == 1
    told = orjson.loads(out.read_bytes())
    assert [part["part"] for part in told["parts"]] == ["failed", "hits"]
    assert told["parts"][0]["rows"][0]["note"] == "ValueError: no room"
    assert (told["seed"], told["version"]) == (3, "sft-1")
    assert seen[0].folder.is_relative_to(tmp_path)
    assert isinstance(seen[0].queries, Queries)
    assert "| hits | a | 1 |" in out.with_suffix(".md").read_text()
    assert "no room" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_it_ends_what_it_has_started(tmp_path: Path, number: signal.Signals) -> None:
    ended: list[str] = []

    async def endless(context: Context) -> Report:
        try:
            os.kill(os.getpid(), number)
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0)
            ended.append("the server")
        raise AssertionError("nothing stopped it")

    async def never(context: Context) -> Report:
        raise AssertionError("it goes on")

    with pytest.raises(typer.Exit) as exit_:
        main([endless, never], tmp_path / "o.json", seed=0)
    assert exit_.value.exit_code == 130
    assert ended == ["the server"]
