"""The generator itself: how many requests a second it sends on time."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loadtests.arrivals import Phase, poisson
from loadtests.client import HttpTransport
from loadtests.load import OpenLoop
from loadtests.queries import Queries
from loadtests.report import Promise, Report
from loadtests.scenarios.traffic import Say, hits
from loadtests.summary import summarise


@dataclass(frozen=True, slots=True)
class GeneratorPlan:
    """How long, and how much.

    Attributes:
        start_rate, factor, max_steps: of the rates that are tried.
        step_s: at each.
        lag_ms: the generator is at its limit once its p99 is so far behind its plan.
    """

    start_rate: float = 500.0
    factor: float = 1.25
    max_steps: int = 16
    step_s: float = 5.0
    lag_ms: float = 10.0

    def quick(self) -> GeneratorPlan:
        """Short, to see that it works; its figures say nothing."""
        return replace(self, max_steps=3, step_s=1.0)


async def run(plan: GeneratorPlan, queries: Queries, folder: Path, say: Say, seed: int) -> Report:
    """Rising rates against a server that does nothing, until the generator falls behind."""
    del folder  # it keeps nothing
    steps: list[dict[str, Any]] = []
    async with _bare_server() as url, HttpTransport(url) as transport:
        make = hits(queries, deadline_s=1.0)
        for step in range(plan.max_steps):
            rate = plan.start_rate * plan.factor**step
            phases = [Phase("step", rate, plan.step_s)]
            loop = OpenLoop(poisson(phases, seed=seed + step), make, transport)
            spent = time.process_time()
            outcomes = await loop.run()
            spent = time.process_time() - spent
            figures = summarise(outcomes, plan.step_s)
            figures["cpu_ms_per_request"] = round(1000 * spent / max(len(outcomes), 1), 4)
            steps.append({"rate": round(rate, 1), **figures})
            lag = figures["generator_lag_ms"]
            say(f"generator at {rate:.0f}/s: lag p99 {lag['p99'] if lag else 0.0:.1f} ms")
            if lag is None or lag["p99"] > plan.lag_ms:
                break
    kept = [s["rate"] for s in steps if s["generator_lag_ms"]["p99"] <= plan.lag_ms]
    limit = max(kept, default=None)
    text = "-" if limit is None else f"{limit:.0f} requests/s"
    promise = Promise(f"the generator alone, lag p99 at most {plan.lag_ms:g} ms", text, None)
    return Report("generator", {"limit_per_s": limit, "steps": steps}, (promise,))


@asynccontextmanager
async def _bare_server() -> AsyncIterator[str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "loadtests.bare",
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        if process.stdout is None:
            raise RuntimeError("the bare server has no standard output")
        async with asyncio.timeout(60):
            port = int(await process.stdout.readline())
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()
