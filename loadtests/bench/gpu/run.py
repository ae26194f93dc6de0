"""Misses and the sweep for each shape and precision, beside the limits of the GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, get_args

import typer

from loadtests.bench import misses, sweep
from loadtests.bench.gpu import models
from loadtests.bench.gpu.floors import Peaks, Precision, miss, step
from loadtests.bench.gpu.shapes import SHAPES, Shape
from loadtests.bench.misses import BATCH_CALLERS, MissesPlan
from loadtests.bench.sweep import SweepPlan
from loadtests.bench.versions import CANDIDATES, BenchVersions
from loadtests.processes import ServerFailed
from loadtests.report import Report, Row
from loadtests.runner import WORK, Context, Part, main, planned
from service.engine.loading import detect_device

_VERSION = "sft-1"
_PRECISIONS: tuple[Precision, ...] = get_args(Precision)
_MISSES = MissesPlan(single=200, batch=3200, warm=200, rounds=5, together=False)
"""A GPU cannot hold the engines of all peers: each is started for its turns."""
_SWEEP = SweepPlan(start_rate=50.0, step_s=20.0)
_VERSIONS = BenchVersions.under(WORK)


def gpu(
    out: Path,
    peaks: Peaks,
    *,
    shapes: Sequence[str] | None,
    precisions: Sequence[str] | None,
    seed: int,
    quick: bool,
) -> None:
    """Run all shapes and precisions.

    Raises:
        typer.BadParameter: a shape or precision is unknown.
        typer.Exit: there is no GPU, or a part failed.
    """
    wanted: list[Shape] = [_known(name, SHAPES) for name in shapes or SHAPES]
    chosen: list[Precision] = [
        _known(p, {p: p for p in _PRECISIONS}) for p in precisions or _PRECISIONS
    ]
    if detect_device() != "cuda":
        typer.echo("there is no NVIDIA GPU that vLLM's build can use", err=True)
        raise typer.Exit(2)
    parts: list[Part] = []
    for shape in wanted:
        for precision in chosen:
            both = partial(_misses, shape=shape, precision=precision, peaks=peaks)
            parts.append(planned(both, _MISSES, quick=quick))
            rising = partial(_sweep, shape=shape, precision=precision)
            parts.append(planned(rising, _SWEEP, quick=quick))
    main(parts, out, seed=seed, head={"version": _VERSION, "peaks": asdict(peaks)})


def _known(name: str, among: dict[str, Any]) -> Any:
    if name not in among:
        raise typer.BadParameter(f"there is no {name}; there are {', '.join(among)}")
    return among[name]


async def _misses(
    plan: MissesPlan, context: Context, *, shape: Shape, precision: Precision, peaks: Peaks
) -> Report:
    name = await models.make(_VERSIONS, _VERSION, shape, precision)
    found = await misses.compare(plan, context, misses.peers(context, _VERSIONS, name))
    figures, rows = beside_floors(found.figures, shape, precision, peaks)
    title = f"misses {shape.name} {precision}"
    return Report(title, {**found.figures, "floors": figures}, (*found.rows, *rows))


async def _sweep(
    plan: SweepPlan, context: Context, *, shape: Shape, precision: Precision
) -> Report:
    name = models.version_name(shape, precision)
    if not (_VERSIONS.source / name / "manifest.json").is_file():
        raise ServerFailed(f"{name} was not made: its misses failed")
    settings = {**_VERSIONS.settings, "REQUERY_DEFAULT_VERSION": name}
    title = f"sweep {shape.name} {precision}"
    return await sweep.run(plan, context, settings=settings, name=title)


def beside_floors(
    figures: Any, shape: Shape, precision: Precision, peaks: Peaks
) -> tuple[dict[str, Any], list[Row]]:
    """The least times of Requery's work in a run, and rows with both.

    Args:
        figures: of the part ``misses``, with Requery as a peer.
        shape: of the model.
        precision: of the matrices of its layers.
        peaks: of the GPU.
    """
    found: dict[str, Any] = {}
    rows: list[Row] = []
    for mode, one in figures["peers"]["Requery"]["modes"].items():
        if not one["requests"]:
            continue
        callers = 1 if mode == "single" else BATCH_CALLERS
        sequences = CANDIDATES * callers
        prompt = one["prompt_tokens_per_request"] / CANDIDATES
        generated = one["generated_tokens_per_request"] / CANDIDATES
        decoding = step(shape, precision, peaks, rows=sequences, context=prompt + generated / 2)
        least = miss(shape, precision, peaks, rows=sequences, prompt=prompt, generated=generated)
        measured = one["over_rounds"]["median_ms"]["median"] / 1000
        found[mode] = {
            "step_by_bytes_ms": 1000 * decoding.by_bytes,
            "step_by_operations_ms": 1000 * decoding.by_operations,
            "request_ms": 1000 * least,
            "measured_median_ms": 1000 * measured,
            "share_of_floor": least / measured,
        }
        rows.append(
            Row(
                f"floor of a miss, {callers} caller{'s' if callers > 1 else ''}",
                f"{1000 * least:.2f} ms; a step: {1000 * decoding.by_bytes:.3f} ms by bytes, "
                f"{1000 * decoding.by_operations:.3f} ms by operations",
                f"Requery takes {measured / least:.2f} times as long",
            )
        )
    return found, rows
