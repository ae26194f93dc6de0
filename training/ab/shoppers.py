"""Simulated shoppers: who they are, what they search for, and who is kept without rewrites.

All of it follows from a seed: the same data and seed give the same shoppers on every machine.
"""

from __future__ import annotations

import hashlib
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from model_store.text import normalise
from training.ab.errors import ExperimentError
from training.data.folds import HELD_OUT, fold_of
from training.data.pairs import World
from training.data.schema import Tables

TAIL_WORDS = 4
"""Words from which a query is of the long tail, if the data does not say how often it is asked."""


@dataclass(frozen=True, slots=True)
class Shopper:
    """One visitor: the unit of randomisation, and of analysis.

    Attributes:
        unit: id that goes with every search (``unit_id``).
        queries: what is searched for, one search each, in order (in normal form).
    """

    unit: str
    queries: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tail:
    """The rare queries, and the rule that they were found by, in words."""

    rule: str
    queries: frozenset[str]


def held_out_traffic(tables: Tables, world: World) -> dict[str, int]:
    """Searches of each held-out query that has grades (normal form -> count, at least 1).

    Raises:
        ExperimentError: there is no such query.
    """
    asked: dict[str, int] = defaultdict(int)
    for query, _, searches in tables.queries.iter_rows():
        asked[normalise(query, fold_case=True)] += max(1, searches)
    traffic = {
        query: asked[query]
        for query, canonical in world.canonical.items()
        if fold_of(canonical) == HELD_OUT and world.grades.get(query)
    }
    if not traffic:
        raise ExperimentError(
            "the held-out fold has no query with grades or clicks, so shoppers cannot be drawn; "
            "bring more queries"
        )
    return traffic


def draw_shoppers(
    traffic: Mapping[str, int], count: int, seed: int, max_searches: int = 3
) -> list[Shopper]:
    """``count`` shoppers with 1 to ``max_searches`` searches each, all numbers equally likely.

    Each search is drawn on its own, by how often its query is asked.
    """
    queries, weights = list(traffic), list(traffic.values())
    shoppers = []
    for number in range(count):
        unit = f"ab-{seed}-{number:06d}"
        rng = random.Random(f"shopper:{unit}")
        searches = rng.randint(1, max_searches)
        shoppers.append(Shopper(unit, tuple(rng.choices(queries, weights, k=searches))))
    return shoppers


def is_control(unit: str, share: float, seed: int) -> bool:
    """Whether the search backend keeps this unit without rewrites; true of ``share`` of all.

    Hashed apart from the service's own assignment, so that the two are independent.
    """
    digest = hashlib.blake2b(f"requery.ab.control\0{seed}\0{unit}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def tail_of(traffic: Mapping[str, int]) -> Tail:
    """The long tail: queries asked at most as often as the median one, else those of 4+ words."""
    counts: Sequence[int] = list(traffic.values())
    if len(set(counts)) > 1:
        most = int(median(counts))
        rule = f"queries that the data counts at most {most} time{'s' if most != 1 else ''}"
        return Tail(rule, frozenset(q for q, n in traffic.items() if n <= most))
    long = frozenset(q for q in traffic if len(q.split()) >= TAIL_WORDS)
    return Tail(f"queries of {TAIL_WORDS} words or more", long)
