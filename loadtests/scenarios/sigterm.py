"""The service gets SIGTERM under load."""

from __future__ import annotations

import asyncio
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loadtests.arrivals import Phase
from loadtests.exchange import LOST, Failure
from loadtests.processes import alive
from loadtests.queries import Queries
from loadtests.report import Promise, Report, shown
from loadtests.runner import Context
from loadtests.scenarios.traffic import hits_and_misses, load, warm
from loadtests.summary import summarise
from loadtests.target import Target


@dataclass(frozen=True, slots=True)
class SigtermPlan:
    """Sizes and durations.

    Attributes:
        rounds: each with a new service.
        known: repeated queries, which are in the cache.
        hit_rate, miss_rate: requests per second.
        before_s: before the signal.
        patience_s: timeout of the exit.
    """

    rounds: int = 3
    known: int = 20
    hit_rate: float = 40.0
    miss_rate: float = 4.0
    before_s: float = 10.0
    patience_s: float = 60.0

    def quick(self) -> SigtermPlan:
        """See :class:`loadtests.runner.Plan`."""
        return replace(self, rounds=1, known=6, before_s=3.0)


async def run(plan: SigtermPlan, context: Context) -> Report:
    """Some rounds, because the loss depends on the requests in flight."""
    rounds: list[dict[str, Any]] = []
    for number in range(plan.rounds):
        context.say(f"SIGTERM: round {number + 1} of {plan.rounds}")
        folder = context.folder / f"round-{number + 1}"
        rounds.append(await _one(plan, context.queries, folder, context.seed + number))
    return Report("sigterm", {"rounds": rounds}, _promises(rounds))


async def _one(plan: SigtermPlan, queries: Queries, folder: Path, seed: int) -> dict[str, Any]:
    known = Queries(queries.known[: plan.known], seed=seed)
    async with Target(folder) as target:
        await warm(target, known.known)
        rates = (plan.hit_rate, plan.miss_rate)
        mix = hits_and_misses(known, queries, target, rates, seed=seed)
        run_s = plan.before_s + plan.patience_s
        loop = load([Phase("all", mix.rate, run_s)], mix, target, seed=seed)
        engine = target.engine
        logged = target.events("info")["request"]
        async with asyncio.TaskGroup() as group:
            running = group.create_task(loop.run())
            await asyncio.sleep(plan.before_s)
            at = loop.now()
            os.kill(target.pid, signal.SIGTERM)
            code = await target.until_exit(plan.patience_s)
            ended = loop.now()
            # A little longer, because requests must now be refused and not lost.
            await asyncio.sleep(0.5)
            loop.stop()
        outcomes = running.result()
        errors = dict(target.events("error"))
        read = target.events("info")["request"] - logged
    since = [o for o in outcomes if o.done >= at]
    refused = [o for o in since if o.failure is Failure.REFUSED]
    lost = [o for o in outcomes if o.failure in LOST]
    return {
        "before": summarise([o for o in outcomes if o.done < at], at),
        "after": summarise(since, max(ended - at, 0.1)),
        "under_way_at_the_signal": sum(o.sent < at <= o.done for o in outcomes),
        "accepted_after_the_signal": sum(o.sent >= at for o in since) - len(refused),
        "refused": len(refused),
        "first_refused_s": round(min(o.sent for o in refused) - at, 3) if refused else None,
        "lost": len(lost),
        # The service logs a line for each request that it has read.
        "read_and_not_answered": read - sum(o.failure is None for o in outcomes),
        "lost_at": [
            {
                "kind": o.kind,
                "failure": o.failure,
                "sent_s": round(o.sent - at, 3),
                "done_s": round(o.done - at, 3),
            }
            for o in lost
        ],
        "other_5xx": sum(o.code >= 500 and o.code != 503 for o in outcomes),
        "exit_code": code,
        "exit_s": round(ended - at, 3),
        "engine_core_left": engine is not None and alive(engine),
        "logged_errors": errors,
    }


def _promises(rounds: list[dict[str, Any]]) -> tuple[Promise, ...]:
    lost = sum(one["lost"] for one in rounds)
    under_way = sum(one["under_way_at_the_signal"] for one in rounds)
    later = sum(one["accepted_after_the_signal"] for one in rounds)
    read = sum(max(one["read_and_not_answered"], 0) for one in rounds)
    codes = [one["exit_code"] for one in rounds]
    longest = max((one["exit_s"] for one in rounds), default=None)
    bad = sum(one["other_5xx"] for one in rounds)
    left = any(one["engine_core_left"] for one in rounds)
    return (
        Promise(
            "SIGTERM under load: no accepted request is lost",
            f"{lost} lost ({read} of them read by the service) of {under_way} under way and "
            f"{later} accepted later",
            lost == 0 and bad == 0,
        ),
        Promise(
            "SIGTERM: exit code 0, the engine core gone too",
            f"{', '.join(map(str, codes))}; after {shown(longest, 's')} at most",
            all(code == 0 for code in codes) and not left,
        ),
    )
