"""The experiment: all searches over HTTP, then the shoppers' actions on the resulting pages.

It has two steps, so that the simulation does not slow the service down while it is timed: first all
answers, with a bounded number of concurrent shoppers; then pages, clicks and purchases from the
answers alone. The second step is deterministic by seed.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tqdm import tqdm

from service.client import AsyncRequery, Rejected, Wishes
from training.ab.backend import Backend
from training.ab.errors import ExperimentError
from training.ab.routing import Plan
from training.ab.shoppers import Shopper, is_control
from training.ab.user_model import Browsed, Chances, UserModel, browse, chances, together
from training.data.pairs import World, is_trivial

CONTROL = "control"
"""The arm that searches without rewrites."""


@dataclass(frozen=True, slots=True)
class Asked:
    """The result of one call of the service.

    ``version`` is None if there was no answer; ``seconds`` is the whole call, as the backend saw
    it.
    """

    version: str | None
    status: str
    rewrites: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Search:
    """One search: the query (in normal form), the call if there was one, what the shopper did.

    ``expected`` is what the user model expects of the page, ``plain`` what it would have expected
    of the page without rewrites.
    """

    query: str
    asked: Asked | None
    done: Browsed
    expected: Chances
    plain: Chances

    @property
    def covered(self) -> bool:
        """Whether it went with a rewrite that differs in more than case, space or plural."""
        return self.asked is not None and any(
            not is_trivial(self.query, rewrite) for rewrite in self.asked.rewrites
        )


@dataclass(frozen=True, slots=True)
class Visit:
    """All searches of one shopper. ``arm`` is the one that the unit was assigned to."""

    unit: str
    arm: str
    searches: tuple[Search, ...]

    @property
    def answered_by(self) -> tuple[str, ...]:
        """Versions that answered, each once, in order."""
        versions = (s.asked.version for s in self.searches if s.asked is not None)
        return tuple(dict.fromkeys(v for v in versions if v is not None))

    def restricted(self, queries: frozenset[str]) -> Visit:
        """The visit with the searches for these queries alone."""
        return Visit(self.unit, self.arm, tuple(s for s in self.searches if s.query in queries))

    @property
    def expected(self) -> Chances:
        """Expectation of the user model for the visit."""
        return together([s.expected for s in self.searches])

    @property
    def plain(self) -> Chances:
        """Expectation of the user model for the visit without rewrites."""
        return together([s.plain for s in self.searches])


@dataclass(frozen=True, slots=True)
class Service:
    """Options of the calls.

    Attributes:
        url: its address.
        key: the caller's key, if it wants one.
        deadline_ms: of each search.
        max_rewrites: wanted; None leaves it to the version.
        concurrency: shoppers at a time; each waits for an answer before the next search.
    """

    url: str
    key: str | None = None
    deadline_ms: int = 500
    max_rewrites: int | None = None
    concurrency: int = 4


async def ask_all(
    service: Service, shoppers: Sequence[Shopper], world: World
) -> dict[str, tuple[Asked, ...]]:
    """The answers to every search of every shopper, by unit. Queries are sent as people typed them.

    Raises:
        ExperimentError: the service rejects the calls, or has answered none of them.
    """
    waiting = iter(shoppers)
    answers: dict[str, tuple[Asked, ...]] = {}
    wishes: Wishes = {"deadline_ms": service.deadline_ms}
    if service.max_rewrites is not None:
        wishes["max_rewrites"] = service.max_rewrites

    async def ask(client: AsyncRequery, shopper: Shopper, query: str) -> Asked:
        own: Wishes = {**wishes, "unit_id": shopper.unit}
        begun = time.perf_counter()
        answer = await client.rewrite(world.raw.get(query, query), **own)
        seconds = time.perf_counter() - begun
        texts = tuple(rewrite.text for rewrite in answer.rewrites)
        status = f"{answer.status} ({answer.reason})" if answer.reason else answer.status
        return Asked(answer.model_version, status, texts, seconds)

    async def serve(client: AsyncRequery) -> None:
        for shopper in waiting:
            asked = [await ask(client, shopper, query) for query in shopper.queries]
            answers[shopper.unit] = tuple(asked)
            bar.update()

    most = max(1, service.concurrency)
    client = AsyncRequery(service.url, api_key=service.key, max_connections=most)
    with tqdm(total=len(shoppers), desc="searching", unit="shopper") as bar:
        try:
            async with client, asyncio.TaskGroup() as group:
                for _ in range(most):
                    group.create_task(serve(client))
        except ExceptionGroup as failures:
            rejected = failures.subgroup(Rejected)
            if rejected is None:
                raise
            first = rejected.exceptions[0]
            raise ExperimentError(f"the service rejects the searches: {first}") from first
    statuses = {one.status for asked in answers.values() for one in asked if one.version is None}
    if answers and all(one.version is None for asked in answers.values() for one in asked):
        raise ExperimentError(
            f"the service answered none of the searches ({', '.join(sorted(statuses))}); "
            "give it a longer --deadline-ms or less --concurrency"
        )
    return answers


def simulate(
    shoppers: Sequence[Shopper],
    answers: dict[str, tuple[Asked, ...]],
    plan: Plan,
    backend: Backend,
    model: UserModel,
    seed: int,
) -> list[Visit]:
    """Simulate each shopper; those without ``answers`` search without rewrites.

    The same seed and the same rewrites give the same clicks and purchases.
    """
    visits = []
    for shopper in tqdm(shoppers, desc="shopping", unit="shopper"):
        rng = random.Random(f"browse:{seed}:{shopper.unit}")
        asked = answers.get(shopper.unit)
        searches = []
        for place, query in enumerate(shopper.queries):
            one = None if asked is None else asked[place]
            plain = backend.page(query)
            page = plain if one is None else backend.page(query, one.rewrites)
            grades = backend.grades(query, page)
            expected = chances(grades, model)
            without = expected if page == plain else chances(backend.grades(query, plain), model)
            searches.append(Search(query, one, browse(grades, model, rng), expected, without))
        arm = CONTROL if asked is None else plan.arm(shopper.unit)
        visits.append(Visit(shopper.unit, arm, tuple(searches)))
    return visits


def run(
    service: Service,
    shoppers: Sequence[Shopper],
    plan: Plan,
    world: World,
    backend: Backend,
    *,
    control_share: float,
    seed: int,
    model: UserModel | None = None,
) -> list[Visit]:
    """The whole experiment, in the order of ``shoppers``.

    Raises:
        ExperimentError: the service rejects the calls, or has answered none of them.
    """
    treated = [s for s in shoppers if not is_control(s.unit, control_share, seed)]
    answers = asyncio.run(ask_all(service, treated, world))
    return simulate(shoppers, answers, plan, backend, model or UserModel(), seed)
