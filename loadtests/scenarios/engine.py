"""The engine core is killed, and stopped, under load."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import psutil

from loadtests.arrivals import Phase
from loadtests.exchange import Outcome
from loadtests.load import OpenLoop
from loadtests.processes import ServerFailed, alive
from loadtests.queries import Queries
from loadtests.report import Promise, Report, shown
from loadtests.runner import Context
from loadtests.scenarios.traffic import hits_and_misses, load, warm
from loadtests.summary import summarise, worst_over_deadline
from loadtests.target import Target

_POLL_S = 0.05
_PROMISED_S = 0.05
"""Promised limit of how late a request may end, in seconds."""


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """Sizes and durations.

    Attributes:
        known: repeated queries, which are in the cache.
        hit_rate, miss_rate: requests per second.
        before_s: before the signal.
        patience_s: timeout of the recovery.
        after_s: with the new engine.
    """

    known: int = 20
    hit_rate: float = 20.0
    miss_rate: float = 3.0
    before_s: float = 10.0
    patience_s: float = 240.0
    after_s: float = 10.0

    def quick(self) -> EnginePlan:
        """See :class:`loadtests.runner.Plan`."""
        return replace(self, known=6, before_s=4.0, patience_s=150.0, after_s=4.0)


async def run(plan: EnginePlan, context: Context) -> Report:
    """SIGKILL and SIGSTOP, each with a new service."""
    figures: dict[str, Any] = {}
    promises: list[Promise] = []
    for number, sent in enumerate((signal.SIGKILL, signal.SIGSTOP)):
        context.say(f"engine core: {sent.name}")
        found = await _one(plan, sent, context, context.seed + number)
        figures[sent.name] = found
        promises += _promises(sent.name, found)
    return Report("engine", figures, tuple(promises))


@dataclass(slots=True)
class _Seen:
    """Seconds from the signal; ``None`` if it did not happen."""

    not_ready_s: float | None = None
    ready_again_s: float | None = None


async def _one(
    plan: EnginePlan, sent: signal.Signals, context: Context, seed: int
) -> dict[str, Any]:
    queries = context.queries
    known = Queries(queries.known[: plan.known], seed=seed)
    async with Target(context.folder / sent.name) as target:
        await warm(target, known.known)
        rates = (plan.hit_rate, plan.miss_rate)
        mix = hits_and_misses(known, queries, target, rates, seed=seed)
        old = target.engine
        if old is None:
            raise ServerFailed("the service has no engine core among its children")
        run_s = plan.before_s + plan.patience_s + plan.after_s
        loop = load([Phase("all", mix.rate, run_s)], mix, target, seed=seed)
        async with asyncio.TaskGroup() as group:
            running = group.create_task(loop.run())
            await asyncio.sleep(plan.before_s)
            at = loop.now()
            old.send_signal(sent)
            seen = await _watch(target, old, loop, at, plan.patience_s)
            if seen.ready_again_s is not None:
                await asyncio.sleep(plan.after_s)
            loop.stop()
        left = alive(old)
        errors = dict(target.events("error"))
    return _figures(running.result(), at, seen) | {
        "old_core_left": left,
        "logged_errors": errors,
    }


def _figures(outcomes: Sequence[Outcome], at: float, seen: _Seen) -> dict[str, Any]:
    """Figures before the signal, until the service was ready again, and after that."""
    after = [o for o in outcomes if o.due >= at]
    end = max((o.done for o in after), default=at)
    down_until = at + seen.ready_again_s if seen.ready_again_s is not None else end
    hit = [o for o in outcomes if o.done >= at]
    return {
        "before": summarise([o for o in outcomes if o.due < at], at),
        "down": summarise([o for o in after if o.due < down_until], max(down_until - at, 0.1)),
        "after": summarise([o for o in after if o.due >= down_until], max(end - down_until, 0.1)),
        "worst_over_deadline_ms": _ms(worst_over_deadline(hit)),
        "worst_over_deadline_from_sending_ms": _ms(worst_over_deadline(hit, from_sending=True)),
        "under_way_at_the_signal": summarise([o for o in outcomes if o.sent < at <= o.done], 1.0),
        "other_5xx": sum(o.code >= 500 and o.code != 503 for o in outcomes),
        "unanswered": sum(o.failure is not None for o in outcomes),
        "not_ready_after_s": seen.not_ready_s,
        "ready_again_s": seen.ready_again_s,
        "first_generated_answer_s": _first_generated(after, at, down_until),
    }


async def _watch(
    target: Target, old: psutil.Process, loop: OpenLoop, at: float, patience_s: float
) -> _Seen:
    """Poll ``/readyz`` until a new engine core has replaced the old one."""
    seen = _Seen()
    while loop.now() - at < patience_s:
        ready = await target.ready()
        if not ready and seen.not_ready_s is None:
            seen.not_ready_s = round(loop.now() - at, 3)
        replaced = not alive(old) or target.engine not in (None, old)
        # Until the service was once not ready, its readiness is that of the old core.
        if ready and replaced and seen.not_ready_s is not None:
            seen.ready_again_s = round(loop.now() - at, 3)
            break
        await asyncio.sleep(_POLL_S)
    return seen


def _first_generated(after: Sequence[Outcome], at: float, since: float) -> float | None:
    done = [o.done - at for o in after if o.source == "engine" and o.good() and o.done >= since]
    return round(min(done), 3) if done else None


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 1)


def _promises(name: str, found: dict[str, Any]) -> list[Promise]:
    worst = found["worst_over_deadline_from_sending_ms"]
    due = found["worst_over_deadline_ms"]
    codes = found["down"]["codes"]
    bad = found["other_5xx"] + found["unanswered"]
    ready = found["ready_again_s"]
    return [
        Promise(
            f"engine core {name}: no request ends later than its deadline + 50 ms",
            f"worst {shown(worst, 'ms')} over the deadline ({shown(due, 'ms')} from when it was "
            "due)",
            worst is not None and worst <= _PROMISED_S * 1000,
        ),
        Promise(
            f"engine core {name}: no 5xx but 503, every request answered",
            f"{bad} of others; while it was down {_listed(codes)}, "
            f"{_listed(found['down']['statuses'])}",
            bad == 0,
        ),
        Promise(
            f"engine core {name}: ready again without a person",
            f"after {shown(ready, 's')}; /readyz said so after "
            f"{shown(found['not_ready_after_s'], 's', 2)}",
            ready is not None and not found["old_core_left"],
        ),
    ]


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{n} x {name}" for name, n in counts.items()) or "nothing"
