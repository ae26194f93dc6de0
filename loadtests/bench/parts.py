"""The parts of the benchmark, ready for the runner."""

from __future__ import annotations

from collections.abc import Sequence

from loadtests.bench import hits as hits_part
from loadtests.bench import misses as misses_part
from loadtests.bench import scale as scale_part
from loadtests.bench import sweep as sweep_part
from loadtests.bench.plans import CANDIDATES, WORK, HitsPlan, MissesPlan, ScalePlan, SweepPlan
from loadtests.bench.runner import Context, Part
from loadtests.bench.section import Section


def hits(plan: HitsPlan) -> Part:
    """Cached answers."""

    async def part(context: Context) -> Section:
        return await hits_part.run(
            plan, context.queries, WORK, context.folder, context.say, context.seed
        )

    return part


def misses(plan: MissesPlan, peers: Sequence[str] | None = None) -> Part:
    """Never-seen queries, of the named peers."""

    async def part(context: Context) -> Section:
        context.versions.make(context.version, [CANDIDATES])
        chosen = misses_part.peers(context.versions, context.folder, peers or misses_part.PEERS)
        return await misses_part.run(plan, chosen, context.queries, context.say)

    return part


def scale(plan: ScalePlan) -> Part:
    """What more of something costs."""

    async def part(context: Context) -> Section:
        context.versions.make(context.version, plan.candidates)
        return await scale_part.run(
            plan, context.versions, context.queries, context.folder, context.say
        )

    return part


def sweep(plan: SweepPlan) -> Part:
    """Rising rates."""

    async def part(context: Context) -> Section:
        settings = {"REQUERY_DEFAULT_VERSION": context.version}
        return await sweep_part.run(
            plan, settings, context.queries, context.folder, context.say, context.seed
        )

    return part
