"""The reliability benchmarks: ``python -m loadtests.reliability <scenario>``.

Each scenario starts the real service, harms it, and reports what it measured. All of them stay on
this machine and end by themselves.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from loadtests.runner import WORK, Out, Quick, Seed, main, planned
from loadtests.scenarios import engine, overload, redis, sigterm, soak
from loadtests.scenarios.engine import EnginePlan
from loadtests.scenarios.overload import OverloadPlan
from loadtests.scenarios.redis import RedisPlan
from loadtests.scenarios.sigterm import SigtermPlan
from loadtests.scenarios.soak import SoakPlan

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@app.command("overload")
def overload_command(
    out: Out = WORK / "overload.json",
    seed: Seed = 0,
    quick: Quick = False,
    deadline_ms: Annotated[
        list[int] | None,
        typer.Option(help="Deadlines to measure; 0 is the service's own. Default: 0 and 1000."),
    ] = None,
    seconds: Annotated[
        float, typer.Option(help="Of the overload, and of the measurement of the peak.")
    ] = OverloadPlan().overload_s,
) -> None:
    """Peak goodput, three times that for a minute, and recovery."""
    plan = OverloadPlan(overload_s=seconds, peak_s=seconds)
    if deadline_ms is not None:
        plan = replace(plan, deadlines_ms=tuple(ms or None for ms in deadline_ms))
    main([planned(overload.run, plan, quick=quick)], out, seed=seed)


@app.command("redis")
def redis_command(
    out: Out = WORK / "redis.json",
    seed: Seed = 0,
    quick: Quick = False,
    seconds: Annotated[
        float, typer.Option(help="Of each fault, and before it.")
    ] = RedisPlan().fault_s,
    fault: Annotated[
        list[str] | None, typer.Option(help=f"{', '.join(redis.FAULTS)}. Default: all.")
    ] = None,
) -> None:
    """Redis refused, reset, black-holed, slow, restarted empty, out of memory."""
    if unknown := set(fault or ()) - set(redis.FAULTS):
        raise typer.BadParameter(f"there is no fault {', '.join(sorted(unknown))}")
    plan = RedisPlan(before_s=seconds, fault_s=seconds, faults=tuple(fault or ()))
    main([planned(redis.run, plan, quick=quick)], out, seed=seed)


@app.command("engine")
def engine_command(out: Out = WORK / "engine.json", seed: Seed = 0, quick: Quick = False) -> None:
    """The engine core killed, and stopped, under load."""
    main([planned(engine.run, EnginePlan(), quick=quick)], out, seed=seed)


@app.command("sigterm")
def sigterm_command(
    out: Out = WORK / "sigterm.json",
    seed: Seed = 0,
    quick: Quick = False,
    rounds: Annotated[int, typer.Option(min=1)] = SigtermPlan().rounds,
) -> None:
    """SIGTERM under load."""
    main([planned(sigterm.run, SigtermPlan(rounds=rounds), quick=quick)], out, seed=seed)


@app.command("soak")
def soak_command(
    out: Out = WORK / "soak.json",
    seed: Seed = 0,
    quick: Quick = False,
    minutes: Annotated[float, typer.Option(help="Under load, the warm-up included.")] = 20.0,
    warm_up_minutes: Annotated[
        float, typer.Option(help="After this time, memory must not grow.")
    ] = 5.0,
) -> None:
    """Mixed traffic for a long time: memory, descriptors, threads, tasks."""
    if not 0 <= warm_up_minutes < minutes:
        raise typer.BadParameter("the warm-up must be shorter than the whole")
    plan = SoakPlan(seconds=minutes * 60, warm_up_s=warm_up_minutes * 60)
    main([planned(soak.run, plan, quick=quick)], out, seed=seed)


@app.command("all")
def all_command(out: Out = WORK / "reliability.json", seed: Seed = 0, quick: Quick = False) -> None:
    """All scenarios but the soak."""
    parts = [
        planned(overload.run, OverloadPlan(), quick=quick),
        planned(redis.run, RedisPlan(), quick=quick),
        planned(engine.run, EnginePlan(), quick=quick),
        planned(sigterm.run, SigtermPlan(), quick=quick),
    ]
    main(parts, out, seed=seed)


if __name__ == "__main__":
    app()
