"""The command line of the performance benchmarks."""

from __future__ import annotations

from functools import partial
from typing import Annotated

import typer

from loadtests.bench import hits, misses, scale, sweep
from loadtests.bench.gpu.floors import Peaks
from loadtests.bench.gpu.run import gpu
from loadtests.bench.hits import HitsPlan
from loadtests.bench.misses import MissesPlan
from loadtests.bench.peers import PEERS
from loadtests.bench.scale import ScalePlan
from loadtests.bench.sweep import SweepPlan
from loadtests.bench.versions import BenchVersions
from loadtests.runner import WORK, Out, Part, Quick, Seed, main, planned

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

Rounds = Annotated[int, typer.Option(min=1, help="Rounds; each peer has a turn in each.")]
_VERSION = "sft-1"
"""Version whose weights all peers get."""
_HEAD = {"version": _VERSION}
_VERSIONS = BenchVersions.under(WORK)


def _hits(rounds: int, *, quick: bool) -> Part:
    return planned(hits.run, HitsPlan(rounds=rounds), quick=quick)


def _misses(rounds: int, names: list[str] | None = None, *, quick: bool) -> Part:
    run = partial(misses.run, versions=_VERSIONS, of=_VERSION, names=names)
    return planned(run, MissesPlan(rounds=rounds), quick=quick)


def _scale(*, quick: bool) -> Part:
    return planned(partial(scale.run, versions=_VERSIONS, of=_VERSION), ScalePlan(), quick=quick)


def _sweep(plan: SweepPlan, *, quick: bool) -> Part:
    run = partial(sweep.run, settings={"REQUERY_DEFAULT_VERSION": _VERSION})
    return planned(run, plan, quick=quick)


@app.command("all")
def all_command(
    out: Out = WORK / "bench.json",
    seed: Seed = 0,
    quick: Quick = False,
    rounds: Rounds = 5,
) -> None:
    """Run hits, misses, scale and sweep in order."""
    parts = [
        _hits(rounds, quick=quick),
        _misses(rounds, quick=quick),
        _scale(quick=quick),
        _sweep(SweepPlan(), quick=quick),
    ]
    main(parts, out, seed=seed, head=_HEAD)


@app.command("hits")
def hits_command(
    out: Out = WORK / "hits.json", seed: Seed = 0, quick: Quick = False, rounds: Rounds = 5
) -> None:
    """Cached answers: throughput of one process, and added latency."""
    main([_hits(rounds, quick=quick)], out, seed=seed)


@app.command("misses")
def misses_command(
    out: Out = WORK / "misses.json",
    seed: Seed = 0,
    quick: Quick = False,
    rounds: Rounds = 5,
    peer: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(PEERS)}. Default: all.")
    ] = None,
) -> None:
    """Never-seen queries: the service beside the raw engine, vLLM's server and transformers."""
    if unknown := set(peer or ()) - PEERS.keys():
        raise typer.BadParameter(f"there is no peer {', '.join(sorted(unknown))}")
    main([_misses(rounds, peer, quick=quick)], out, seed=seed, head=_HEAD)


@app.command("scale")
def scale_command(out: Out = WORK / "scale.json", seed: Seed = 0, quick: Quick = False) -> None:
    """Latency by candidates and by loaded versions; the cache in memory by entries."""
    main([_scale(quick=quick)], out, seed=seed, head=_HEAD)


@app.command("sweep")
def sweep_command(
    out: Out = WORK / "sweep.json",
    seed: Seed = 0,
    quick: Quick = False,
    unseen: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of never-seen queries.")
    ] = SweepPlan().unseen,
    deadline_ms: Annotated[
        int | None, typer.Option(help="Of each request; default: the service's own.")
    ] = None,
) -> None:
    """Rising rates of requests until answers no longer come in time."""
    plan = SweepPlan(unseen=unseen, deadline_ms=deadline_ms)
    main([_sweep(plan, quick=quick)], out, seed=seed, head=_HEAD)


@app.command("gpu")
def gpu_command(
    out: Out = WORK / "bench-gpu.json",
    seed: Seed = 0,
    quick: Quick = False,
    shape: Annotated[
        list[str] | None, typer.Option(help="smollm2-135m, qwen3-0.6b, qwen3-8b. Default: all.")
    ] = None,
    precision: Annotated[list[str] | None, typer.Option(help="bf16, fp8. Default: both.")] = None,
    bandwidth_gb_s: Annotated[
        float, typer.Option(help="Of the GPU's memory, by its data sheet.")
    ] = 4800.0,
    bf16_tflops: Annotated[float, typer.Option(help="Dense peak, by its data sheet.")] = 989.0,
    fp8_tflops: Annotated[float, typer.Option(help="Dense peak, by its data sheet.")] = 1979.0,
) -> None:
    """Misses and the sweep on a GPU for three model shapes, beside the hardware's limits."""
    peaks = Peaks(bandwidth_gb_s * 1e9, bf16_tflops * 1e12, fp8_tflops * 1e12)
    gpu(out, peaks, shapes=shape, precisions=precision, seed=seed, quick=quick)
