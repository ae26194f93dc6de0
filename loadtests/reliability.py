"""The reliability benchmarks: ``python -m loadtests.reliability <scenario>``.

Each starts the real service, treats it badly, and says what it measured. Everything stays on this
machine, and ends by itself.
"""

from __future__ import annotations

import asyncio
import resource
import tempfile
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
import uvloop

from loadtests.queries import Queries, known_queries
from loadtests.report import Promise, Report, machine, table
from loadtests.scenarios import engine, generator, overload, redis, sigterm, soak
from loadtests.scenarios.engine import EnginePlan
from loadtests.scenarios.generator import GeneratorPlan
from loadtests.scenarios.overload import OverloadPlan
from loadtests.scenarios.redis import RedisPlan
from loadtests.scenarios.sigterm import SigtermPlan
from loadtests.scenarios.soak import SoakPlan

MOST_S = 2 * 3600.0
"""Bound on one scenario, whatever hangs."""

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)

Out = Annotated[
    Path | None, typer.Option(help="JSON file for the figures, and a table beside it (.md).")
]
Seed = Annotated[int, typer.Option(help="Of arrivals and queries.")]
Quick = Annotated[
    bool, typer.Option("--quick", help="Short, to see that it works; its figures say nothing.")
]
Scenario = Callable[[Queries, Path], Awaitable[Report]]


@app.command("generator")
def generator_command(out: Out = None, seed: Seed = 0, quick: Quick = False) -> None:
    """How many requests a second the generator itself sends on time."""
    _main([_generator(seed, quick=quick)], out, seed)


@app.command("overload")
def overload_command(
    out: Out = None,
    seed: Seed = 0,
    quick: Quick = False,
    deadline_ms: Annotated[
        list[int] | None,
        typer.Option(help="Deadlines to measure; 0 is the service's own. Default: 0 and 1000."),
    ] = None,
    start_rate: Annotated[
        float, typer.Option(help="First rate of the sweep, a second; some 50 on a GPU.")
    ] = OverloadPlan().start_rate,
    seconds: Annotated[
        float, typer.Option(help="Of the overload, and of the measurement of the peak.")
    ] = OverloadPlan().overload_s,
) -> None:
    """Peak goodput, three times that for a minute, and recovery."""
    plan = replace(OverloadPlan(), start_rate=start_rate, overload_s=seconds, peak_s=seconds)
    if deadline_ms is not None:
        plan = replace(plan, deadlines_ms=tuple(ms or None for ms in deadline_ms))
    _main([_overload(plan, seed, quick=quick)], out, seed)


@app.command("redis")
def redis_command(
    out: Out = None,
    seed: Seed = 0,
    quick: Quick = False,
    seconds: Annotated[
        float, typer.Option(help="Of each fault, and before it.")
    ] = RedisPlan().fault_s,
    fault: Annotated[
        list[str] | None, typer.Option(help=f"Which: {', '.join(redis.FAULTS)}. Default: all.")
    ] = None,
) -> None:
    """Redis refused, reset, black-holed, slow, restarted empty, out of memory."""
    if unknown := set(fault or ()) - set(redis.FAULTS):
        raise typer.BadParameter(f"there is no fault {', '.join(sorted(unknown))}")
    plan = replace(RedisPlan(), before_s=seconds, fault_s=seconds, faults=tuple(fault or ()))
    _main([_redis(plan, seed, quick=quick)], out, seed)


@app.command("engine")
def engine_command(out: Out = None, seed: Seed = 0, quick: Quick = False) -> None:
    """The engine core killed, and stopped, under load."""
    _main([_engine(seed, quick=quick)], out, seed)


@app.command("sigterm")
def sigterm_command(
    out: Out = None,
    seed: Seed = 0,
    quick: Quick = False,
    rounds: Annotated[int, typer.Option(min=1)] = SigtermPlan().rounds,
) -> None:
    """SIGTERM under load."""
    _main([_sigterm(replace(SigtermPlan(), rounds=rounds), seed, quick=quick)], out, seed)


@app.command("soak")
def soak_command(
    out: Out = Path("build/loadtests/soak.json"),
    seed: Seed = 0,
    quick: Quick = False,
    minutes: Annotated[float, typer.Option(help="Under load, the warm-up included.")] = 20.0,
    warm_up_minutes: Annotated[
        float, typer.Option(help="After which memory must no longer grow.")
    ] = 5.0,
    rate: Annotated[float, typer.Option(help="Multiplies all rates.")] = 1.0,
) -> None:
    """Mixed traffic for a long time: memory, descriptors, threads, tasks."""
    if not 0 <= warm_up_minutes < minutes:
        raise typer.BadParameter("the warm-up must be shorter than the whole")
    plan = replace(SoakPlan(), seconds=minutes * 60, warm_up_s=warm_up_minutes * 60, rate=rate)
    _main([_soak(plan, seed, quick=quick)], out, seed)


@app.command("all")
def all_command(
    out: Out = Path("build/loadtests/reliability.json"), seed: Seed = 0, quick: Quick = False
) -> None:
    """Everything but the soak."""
    scenarios = [
        _generator(seed, quick=quick),
        _overload(OverloadPlan(), seed, quick=quick),
        _redis(RedisPlan(), seed, quick=quick),
        _engine(seed, quick=quick),
        _sigterm(SigtermPlan(), seed, quick=quick),
    ]
    _main(scenarios, out, seed)


def _generator(seed: int, *, quick: bool) -> Scenario:
    plan = GeneratorPlan().quick() if quick else GeneratorPlan()
    return lambda queries, folder: generator.run(plan, queries, folder, _say, seed)


def _overload(plan: OverloadPlan, seed: int, *, quick: bool) -> Scenario:
    plan = plan.quick() if quick else plan
    return lambda queries, folder: overload.run(plan, queries, folder, _say, seed)


def _redis(plan: RedisPlan, seed: int, *, quick: bool) -> Scenario:
    plan = plan.quick() if quick else plan
    return lambda queries, folder: redis.run(plan, queries, folder, _say, seed)


def _engine(seed: int, *, quick: bool) -> Scenario:
    plan = EnginePlan().quick() if quick else EnginePlan()
    return lambda queries, folder: engine.run(plan, queries, folder, _say, seed)


def _sigterm(plan: SigtermPlan, seed: int, *, quick: bool) -> Scenario:
    plan = plan.quick() if quick else plan
    return lambda queries, folder: sigterm.run(plan, queries, folder, _say, seed)


def _soak(plan: SoakPlan, seed: int, *, quick: bool) -> Scenario:
    plan = plan.quick() if quick else plan
    return lambda queries, folder: soak.run(plan, queries, folder, _say, seed)


def _main(scenarios: Sequence[Scenario], out: Path | None, seed: int) -> None:
    """Run scenarios one after the other, and write down what each found as soon as it is known."""
    _allow_descriptors()
    known, source = known_queries(seed=seed)
    content: dict[str, Any] = {
        "machine": machine(),
        "queries": {"known": len(known), "source": source},
        "seed": seed,
        "scenarios": [],
    }
    reports: list[Report] = []
    with tempfile.TemporaryDirectory(prefix="requery-loadtests-") as scratch:
        for number, scenario in enumerate(scenarios):
            folder = Path(scratch) / str(number)
            folder.mkdir()
            begin = time.monotonic()
            report = _run(scenario, Queries(known, seed=seed), folder)
            reports.append(report)
            took = round(time.monotonic() - begin, 1)
            content["scenarios"].append(report.content() | {"took_s": took})
            if out is not None:
                _write(out, content, reports)
    typer.echo(table(reports))
    if out is None:
        typer.echo(orjson.dumps(content, option=orjson.OPT_INDENT_2).decode())
    if any(report.scenario == "failed" for report in reports):
        raise typer.Exit(1)


def _run(scenario: Scenario, queries: Queries, folder: Path) -> Report:
    """One scenario; that it could not be run is a finding too, and keeps no other from running."""
    try:
        return uvloop.run(_bounded(scenario(queries, folder)))
    except Exception as error:  # noqa: BLE001 - shown with all that led to it
        trouble = "".join(traceback.format_exception(error))
        _say(trouble)
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        promise = Promise("the scenario runs to its end", f"{type(error).__name__}: {error}", False)
        return Report("failed", {"traceback": trouble}, (promise,))


async def _bounded(report: Awaitable[Report]) -> Report:
    async with asyncio.timeout(MOST_S):
        return await report


def _write(out: Path, content: dict[str, Any], reports: Sequence[Report]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")
    out.with_suffix(".md").write_text(table(reports) + "\n", encoding="utf-8")


def _allow_descriptors() -> None:
    """As many connections as the system lets this process have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _say(text: str) -> None:
    typer.echo(text, err=True)


if __name__ == "__main__":
    app()
