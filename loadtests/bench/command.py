"""The command line. What it starts is imported where it is used: peers' own processes pass here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import typer

from loadtests.bench.plans import WORK, HitsPlan, MissesPlan, ScalePlan, SweepPlan

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

Out = Annotated[
    Path,
    typer.Option(help="JSON file for the figures; a table (.md) and a page (.html) beside it."),
]
Seed = Annotated[int, typer.Option(help="Of arrivals and queries.")]
Quick = Annotated[
    bool, typer.Option("--quick", help="Short, to see that it works; its figures say nothing.")
]
Version = Annotated[str, typer.Option(help="Version whose weights all peers get.")]
Litellm = Annotated[
    bool, typer.Option(help="Install and measure LiteLLM's proxy, in an environment of its own.")
]
Together = Annotated[
    bool,
    typer.Option(help="Keep all peers loaded, stopped while it is not their turn (10 GB)."),
]
PeerNames = Annotated[
    list[str] | None,
    typer.Option("--peer", help="requery, raw, plain, server, transformers. Default: all of them."),
]
Rounds = Annotated[int, typer.Option(min=1, help="Of all peers in turn.")]
_VERSION = "sft-1"


@app.command("all")
def all_command(
    out: Out = WORK / "bench.json",
    seed: Seed = 0,
    quick: Quick = False,
    version: Version = _VERSION,
    litellm: Litellm = True,
    together: Together = True,
    rounds: Rounds = 5,
) -> None:
    """Hits, misses, cost of scale and the sweep, one after the other."""
    from loadtests.bench import parts, runner

    hits = HitsPlan(litellm=litellm, rounds=rounds)
    misses = MissesPlan(together=together, rounds=rounds)
    scale, sweep = ScalePlan(), SweepPlan()
    if quick:
        hits, misses, scale, sweep = hits.quick(), misses.quick(), scale.quick(), sweep.quick()
    runner.main(
        [parts.hits(hits), parts.misses(misses), parts.scale(scale), parts.sweep(sweep)],
        out,
        seed=seed,
        version=version,
    )


@app.command("hits")
def hits_command(
    out: Out = WORK / "hits.json",
    seed: Seed = 0,
    quick: Quick = False,
    version: Version = _VERSION,
    litellm: Litellm = True,
    rounds: Rounds = 5,
) -> None:
    """Cached answers: throughput of one process, and what they add to the latency."""
    from loadtests.bench import parts, runner

    plan = HitsPlan(litellm=litellm, rounds=rounds)
    runner.main([parts.hits(plan.quick() if quick else plan)], out, seed=seed, version=version)


@app.command("misses")
def misses_command(
    out: Out = WORK / "misses.json",
    seed: Seed = 0,
    quick: Quick = False,
    version: Version = _VERSION,
    together: Together = True,
    rounds: Rounds = 5,
    peer: PeerNames = None,
) -> None:
    """Never-seen queries: the service beside the raw engine, vLLM's server and transformers."""
    from loadtests.bench import parts, runner

    plan = MissesPlan(together=together, rounds=rounds)
    part = parts.misses(plan.quick() if quick else plan, peer or None)
    runner.main([part], out, seed=seed, version=version)


@app.command("scale")
def scale_command(
    out: Out = WORK / "scale.json",
    seed: Seed = 0,
    quick: Quick = False,
    version: Version = _VERSION,
) -> None:
    """Latency by candidates and by loaded versions; the cache in memory by entries."""
    from loadtests.bench import parts, runner

    plan = ScalePlan()
    runner.main([parts.scale(plan.quick() if quick else plan)], out, seed=seed, version=version)


@app.command("sweep")
def sweep_command(
    out: Out = WORK / "sweep.json",
    seed: Seed = 0,
    quick: Quick = False,
    version: Version = _VERSION,
    start_rate: Annotated[float, typer.Option(help="First rate, a second.")] = (
        SweepPlan().start_rate
    ),
    unseen: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of never-seen queries.")
    ] = SweepPlan().unseen,
    deadline_ms: Annotated[
        int | None, typer.Option(help="Of each request; default: the service's own.")
    ] = None,
) -> None:
    """Rising rates of shoppers, until answers no longer come in time."""
    from loadtests.bench import parts, runner

    plan = SweepPlan().quick() if quick else SweepPlan()
    plan = replace(plan, start_rate=start_rate, unseen=unseen, deadline_ms=deadline_ms)
    runner.main([parts.sweep(plan)], out, seed=seed, version=version)


@app.command("profile")
def profile_command(
    what: Annotated[Literal["hits", "misses"], typer.Option(help="What the service does.")] = (
        "hits"
    ),
    seconds: Annotated[float, typer.Option(min=1.0, help="Of the recording.")] = 30.0,
    out: Annotated[Path, typer.Option(help="speedscope file.")] = WORK / "profile.speedscope.json",
    seed: Seed = 0,
    version: Version = _VERSION,
) -> None:
    """Where the service's own process spends its time, by py-spy."""
    from loadtests.bench import profiling

    profiling.main(what, seconds, out, seed=seed, version=version)


@app.command("report")
def report_command(
    figures: Annotated[Path, typer.Argument(help="JSON file of an earlier run.")],
) -> None:
    """Make the page (.html) of an earlier run anew."""
    from loadtests.bench import html

    typer.echo(str(html.write(figures)))


@app.command("gpu")
def gpu_command(  # noqa: PLR0917 - typer makes options of them
    out: Out = WORK / "bench-gpu.json",
    seed: Seed = 0,
    quick: Quick = False,
    shape: Annotated[
        list[str] | None,
        typer.Option(help="smollm2-135m, qwen3-0.6b, qwen3-8b. Default: all of them."),
    ] = None,
    precision: Annotated[list[str] | None, typer.Option(help="bf16, fp8. Default: both.")] = None,
    bandwidth_gb_s: Annotated[
        float, typer.Option(help="Of the GPU's memory, by its data sheet.")
    ] = 4800.0,
    bf16_tflops: Annotated[float, typer.Option(help="Peak, dense, by its data sheet.")] = 989.0,
    fp8_tflops: Annotated[float, typer.Option(help="Peak, dense, by its data sheet.")] = 1979.0,
    start_rate: Annotated[float, typer.Option(help="First rate of the sweep.")] = 50.0,
) -> None:
    """Misses and the sweep on a GPU, for three model shapes, beside what the hardware allows."""
    from loadtests.bench.gpu import run
    from loadtests.bench.gpu.floors import Peaks

    peaks = Peaks(bandwidth_gb_s * 1e9, bf16_tflops * 1e12, fp8_tflops * 1e12)
    run.main(
        out,
        peaks,
        shapes=shape,
        precisions=precision,
        seed=seed,
        quick=quick,
        start_rate=start_rate,
    )
