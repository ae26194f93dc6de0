"""Which training queries a stage uses: reproducible choices."""

from __future__ import annotations

import random
from collections.abc import Sequence

from training.data.pairs import World
from training.data.search import recall


def pick_queries(world: World, queries: Sequence[str], count: int, seed: int) -> list[str]:
    """A reproducible sample of queries that have something to find."""
    found = world.with_relevant(queries)
    return random.Random(seed).sample(found, min(count, len(found)))


def pick_prompts(
    world: World, queries: Sequence[str], count: int, missed_share: float, seed: int
) -> list[str]:
    """``count`` queries to align on, in a reproducible order.

    ``missed_share`` of them do not find all of their relevant products by themselves, so that there
    is something to gain; the others teach to do no harm. Too few of a kind are used again.
    """
    rng = random.Random(seed)
    missed: list[str] = []
    whole: list[str] = []
    for query in world.with_relevant(queries):
        found = recall(world.plain(query), world.relevant[query])
        (missed if found < 1 else whole).append(query)
    wanted = round(count * missed_share) if whole else count
    chosen = _again(missed, wanted, rng)
    chosen += _again(whole, count - len(chosen), rng)
    rng.shuffle(chosen)
    return chosen


def _again(pool: Sequence[str], count: int, rng: random.Random) -> list[str]:
    """``count`` of ``pool``, each as often as any other but for one."""
    chosen: list[str] = []
    while pool and len(chosen) < count:
        chosen += rng.sample(pool, min(len(pool), count - len(chosen)))
    return chosen
