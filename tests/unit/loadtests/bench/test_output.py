from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
import typer

from loadtests.bench import hits, html, misses, runner, scale
from loadtests.bench.plans import HitsPlan, MissesPlan, ScalePlan, SweepPlan
from loadtests.bench.section import Row, Section, table
from loadtests.bench.versions import BenchVersions
from loadtests.queries import Queries
from tests.unit.loadtests.bench.test_misses import PLAN, Fake, queries, quiet
from tests.unit.loadtests.bench.test_sweep import figures as sweep_figures

LATENCY = {"count": 2, "p50": 1.0, "p90": 2.0, "p99": 3.0, "p99.9": 4.0, "max": 5.0}


def scale_figures() -> dict[str, Any]:
    one = {"latency_ms": LATENCY, "failures": 0, "generated_tokens_per_request": 9.0}
    state = {"misses": one, "hit_latency_ms": LATENCY, "resident_bytes": 2**30}
    filled = {
        "entries": 10, "bytes_per_entry": 2000, "estimated_bytes_per_entry": 3000,
        "get_us": {"p50": 1.0}, "put_us": {"p50": 2.0}, "collection_ms": 1.0,
    }  # fmt: skip
    return {
        "candidates": {"1": one, "4": one},
        "loaded_versions": {"1": state, "2": state},
        "cache_entries": [filled, {"entries": 20, "not_measured": "too little memory is free"}],
    }


def sweep_section() -> Section:
    step = sweep_figures(lost=6.0)["steps"][0]
    told = {
        **sweep_figures(lost=6.0),
        "steps": [step, {**step, "rate": 8.0}],
        "hit_ratio_over_time": [{"at_s": 1.0, "rate": 4.0, "hit_ratio": 0.5}],
        "stages_ms": {"miss": {"prepare": 1.0, "generate": 300.0, "total": 302.0}},
    }
    return Section("sweep", told, (Row("<knee>", "4/s", note="INVALID: slow"),))


async def sections() -> list[Section]:
    throughput = [{hits.BARE: {"per_s": 100.0}, hits.MEMORY: {"per_s": 50.0}}]
    return [
        Section("hits", {"throughput": throughput}),
        await misses.run(PLAN, [Fake("a", []), Fake("b", [])], queries(), quiet),
        Section("scale", scale_figures(), tuple(scale._rows(scale_figures()))),
        sweep_section(),
    ]


async def test_the_page_holds_all_rows_and_plots_and_needs_no_other_file(tmp_path: Path) -> None:
    found = await sections()
    content = {"seed": 0, "parts": [section.content() for section in found]}
    (tmp_path / "bench.json").write_bytes(orjson.dumps(content))
    page = html.write(tmp_path / "bench.json").read_text()
    assert page.count("<svg") == 1 + 1 + 1 + 4
    assert "&lt;knee&gt;" in page
    assert '<tr class="invalid">' in page
    for elsewhere in ("<script", "<link", "src="):
        assert elsewhere not in page


async def test_the_same_figures_make_the_same_page() -> None:
    content = {"parts": [(await sections())[3].content()]}
    assert html.page(content) == html.page(content)


def test_rows_become_a_table() -> None:
    section = Section("hits", {}, (Row("memory", "5/s", "0.5 of bare", "INVALID: idle"),))
    assert table([section]).splitlines()[-1] == (
        "| hits | memory | 5/s | 0.5 of bare | INVALID: idle |"
    )


def test_what_a_peer_printed_breaks_no_table() -> None:
    section = Section("misses", {}, (Row("raw", "none", note="a | b\n\nTraceback"),))
    (row,) = table([section]).splitlines()[2:]
    assert row.endswith("| a \\| b Traceback |")


def test_scale_says_what_had_no_room() -> None:
    rows = scale._rows(scale_figures())
    assert [row.figure for row in rows if row.what.endswith("20 entries")] == ["not measured"]


@pytest.mark.parametrize("plan", [HitsPlan(), MissesPlan(), ScalePlan(), SweepPlan()])
def test_a_quick_plan_is_another_one(plan: HitsPlan | MissesPlan | ScalePlan | SweepPlan) -> None:
    assert plan.quick() != plan
    assert replace(plan) == plan


def test_a_part_that_fails_is_reported_and_the_others_are_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(runner, "WORK", tmp_path)
    seen: list[runner.Context] = []

    async def broken(context: runner.Context) -> Section:
        raise ExceptionGroup("several", [ValueError("no room")])

    async def works(context: runner.Context) -> Section:
        seen.append(context)
        return Section("hits", {"throughput": []}, (Row("a", "1"),))

    out = tmp_path / "bench.json"
    with pytest.raises(typer.Exit) as exit_:
        runner.main([broken, works], out, seed=3, version="sft-1", more={"peaks": {}})
    assert exit_.value.exit_code == 1
    told = orjson.loads(out.read_bytes())
    assert [part["part"] for part in told["parts"]] == ["failed", "hits"]
    assert told["parts"][0]["rows"][0]["note"] == "ValueError: no room"
    assert (told["seed"], told["version"], told["peaks"]) == (3, "sft-1", {})
    assert seen[0].versions == BenchVersions.under(tmp_path)
    assert isinstance(seen[0].queries, Queries)
    assert "| hits | a | 1 |" in out.with_suffix(".md").read_text()
    assert out.with_suffix(".html").is_file()
    assert "no room" in capsys.readouterr().err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_it_ends_what_it_has_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    monkeypatch.setattr(runner, "WORK", tmp_path)
    ended: list[str] = []

    async def endless(context: runner.Context) -> Section:
        try:
            os.kill(os.getpid(), number)
            await asyncio.sleep(600)
        finally:
            await asyncio.sleep(0)
            ended.append("the server")
        raise AssertionError("nothing stopped it")

    async def never(context: runner.Context) -> Section:
        raise AssertionError("it goes on")

    with pytest.raises(typer.Exit) as exit_:
        runner.main([endless, never], tmp_path / "o.json", seed=0, version="sft-1")
    assert exit_.value.exit_code == 130
    assert ended == ["the server"]
