"""``requery ab`` from end to end: the service, the data, the shoppers, the report."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from training.ab.analysis import analyse
from training.ab.backend import PAGE, Backend
from training.ab.errors import ExperimentError
from training.ab.report import write_report
from training.ab.routing import Plan, read_routing
from training.ab.run import CONTROL, Service, Visit, run
from training.ab.shoppers import draw_shoppers, held_out_traffic, tail_of
from training.ab.user_model import UserModel
from training.data.dataset import data_folder, read_source
from training.data.pairs import World
from training.data.schema import Tables
from training.data.search import DEPTH, REWRITE_WEIGHT


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of an experiment.

    Attributes:
        shoppers: how many.
        control_share: part of the shoppers whose searches go without rewrites.
        seed: decides who searches for what, who is control, and what users do.
        max_searches: of one shopper.
        page: products on a page.
        rewrite_weight: of a rewrite's ranking in the fusion; the query's own counts 1.
        judge: folder of a judge for products without a grade.
    """

    shoppers: int = 2000
    control_share: float = 0.5
    seed: int = 7
    max_searches: int = 3
    page: int = PAGE
    rewrite_weight: float = REWRITE_WEIGHT
    judge: Path | None = None


def shares_of(plan: Plan, control_share: float) -> dict[str, float]:
    """Arm -> part of all shoppers that should be in it, the control first if there is one.

    Raises:
        ExperimentError: there is only one arm, or a version has the control's name.
    """
    if CONTROL in plan.shares:
        raise ExperimentError(f"a version is called {CONTROL!r}, as the arm without rewrites is")
    shares = {CONTROL: control_share} if control_share > 0 else {}
    shares |= {arm: (1 - control_share) * share for arm, share in plan.shares.items()}
    if len(shares) < 2:
        raise ExperimentError(
            f"there is nothing to compare with {', '.join(shares)}: set the weights of two "
            "versions (PUT /routing), or --holdout-share over 0"
        )
    return shares


def experiment(
    service: Service, settings: Settings, *, source: str, data: Path | None, out: Path
) -> dict[str, Any]:
    """Run an experiment and write its report into ``out``.

    Returns:
        What ``report.json`` says.

    Raises:
        ExperimentError: the service cannot be asked, or there is nothing to compare.
        DataError: the data is not there.
        RunError: there is no judge in its folder.
    """
    # The service first: it is looked at in no time, and reading the data takes some.
    plan = asyncio.run(read_routing(service.url, service.key))
    shares = shares_of(plan, settings.control_share)
    tables = read_source(source, data_folder(data))
    result, visits = conduct(service, settings, plan, shares, tables, source)
    write_report(out, result, visits)
    return result


def conduct(
    service: Service,
    settings: Settings,
    plan: Plan,
    shares: dict[str, float],
    tables: Tables,
    source: str,
) -> tuple[dict[str, Any], list[Visit]]:
    """The experiment on data that has been read: its figures, and every visit."""
    judge = None
    if settings.judge is not None:
        from training.judge.model import load_judge

        judge = load_judge(settings.judge)
    world = World(tables)
    traffic = held_out_traffic(tables, world)
    shoppers = draw_shoppers(traffic, settings.shoppers, settings.seed, settings.max_searches)
    model = UserModel()
    visits = run(
        service,
        shoppers,
        plan,
        world,
        Backend(world, weight=settings.rewrite_weight, size=settings.page, judge=judge),
        control_share=settings.control_share,
        seed=settings.seed,
        model=model,
    )
    result = {
        "simulated": True,
        "set_up": {
            "source": source,
            "shoppers": len(shoppers),
            "queries": len(traffic),
            "seed": settings.seed,
            "max_searches": settings.max_searches,
            "shares": shares,
            "salt": plan.value.salt,
            "deadline_ms": service.deadline_ms,
            "max_rewrites": service.max_rewrites,
            "concurrency": service.concurrency,
            "page": settings.page,
            "budget": DEPTH,
            "rewrite_weight": settings.rewrite_weight,
            "user_model": asdict(model),
            "unjudged": "bad" if judge is None else "graded by a judge",
        },
        "routing_changed": _changed(service, plan),
        "analysis": analyse(visits, shares, tail_of(traffic)),
    }
    return result, visits


def _changed(service: Service, plan: Plan) -> bool:
    """Whether the routing is another one now; a kill switch, or no service, is another one too."""
    try:
        now = asyncio.run(read_routing(service.url, service.key))
    except ExperimentError:
        return True
    return now.value != plan.value
