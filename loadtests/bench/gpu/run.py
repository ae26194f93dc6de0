"""Misses and the sweep for each shape and precision, beside the floors of the GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args

import typer

from loadtests.bench import misses, runner, sweep
from loadtests.bench.gpu import models
from loadtests.bench.gpu.floors import Peaks, Precision, miss, step
from loadtests.bench.gpu.shapes import SHAPES, Shape
from loadtests.bench.peer import PeerFailed
from loadtests.bench.plans import BATCH_CALLERS, CANDIDATES, MissesPlan, SweepPlan
from loadtests.bench.section import Row, Section
from service.engine.loading import detect_device

_VERSION = "sft-1"
_PRECISIONS: tuple[Precision, ...] = get_args(Precision)
_MISSES = MissesPlan(single=200, batch=3200, warm=200, rounds=5, together=False)
"""A GPU has no room for every peer's engine at a time: each is started for its turns."""
_SWEEP = SweepPlan(step_s=20.0, known=1000)


def main(
    out: Path,
    peaks: Peaks,
    *,
    shapes: Sequence[str] | None,
    precisions: Sequence[str] | None,
    seed: int,
    quick: bool,
    start_rate: float,
) -> None:
    """Run all of it.

    Raises:
        typer.BadParameter: there is no such shape or precision.
        typer.Exit: there is no GPU here, or a part failed.
    """
    wanted = [_known(name, SHAPES) for name in shapes or SHAPES]
    chosen = [_known(p, {p: p for p in _PRECISIONS}) for p in precisions or _PRECISIONS]
    if detect_device() != "cuda":
        typer.echo("there is no NVIDIA GPU here that vLLM's build can use", err=True)
        raise typer.Exit(2)
    plans = (_MISSES.quick(), _SWEEP.quick()) if quick else (_MISSES, _SWEEP)
    rates = replace(plans[1], start_rate=start_rate)
    parts: list[runner.Part] = []
    for shape in wanted:
        for precision in chosen:
            parts += [_misses(plans[0], shape, precision, peaks), _sweep(rates, shape, precision)]
    runner.main(parts, out, seed=seed, version=_VERSION, more={"peaks": asdict(peaks)})


def _known(name: str, among: dict[str, Any]) -> Any:
    if name not in among:
        raise typer.BadParameter(f"there is no {name}; there are {', '.join(among)}")
    return among[name]


def _misses(plan: MissesPlan, shape: Shape, precision: Precision, peaks: Peaks) -> runner.Part:
    async def part(context: runner.Context) -> Section:
        name = await models.make(context.versions, context.version, shape, precision)
        chosen = misses.peers(context.versions, context.folder, version=name)
        found = await misses.run(plan, chosen, context.queries, context.say)
        figures, rows = beside_floors(found.figures, shape, precision, peaks)
        title = f"misses {shape.name} {precision}"
        return Section(title, {**found.figures, "floors": figures}, (*found.rows, *rows))

    return part


def _sweep(plan: SweepPlan, shape: Shape, precision: Precision) -> runner.Part:
    async def part(context: runner.Context) -> Section:
        name = models.version_name(shape, precision)
        if not (context.versions.source / name / "manifest.json").is_file():
            raise PeerFailed(f"{name} was not made: its misses failed")
        settings = {**context.versions.settings, "REQUERY_DEFAULT_VERSION": name}
        found = await sweep.run(
            plan, settings, context.queries, context.folder, context.say, context.seed
        )
        return Section(f"sweep {shape.name} {precision}", found.figures, found.rows)

    return part


def beside_floors(
    figures: Any, shape: Shape, precision: Precision, peaks: Peaks
) -> tuple[dict[str, Any], list[Row]]:
    """The floors of what Requery did in a run, and lines that set the two side by side.

    Args:
        figures: of the part ``misses``, with Requery among its peers.
        shape: of the model.
        precision: of its matrices.
        peaks: of the GPU.
    """
    found: dict[str, Any] = {}
    rows: list[Row] = []
    for mode, told in figures["peers"]["Requery"]["modes"].items():
        if not told["requests"]:
            continue
        callers = 1 if mode == "single" else BATCH_CALLERS
        sequences = CANDIDATES * callers
        prompt = told["prompt_tokens_per_request"] / CANDIDATES
        generated = told["generated_tokens_per_request"] / CANDIDATES
        decoding = step(shape, precision, peaks, rows=sequences, context=prompt + generated / 2)
        least = miss(shape, precision, peaks, rows=sequences, prompt=prompt, generated=generated)
        measured = told["over_rounds"]["median_ms"]["median"] / 1000
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
