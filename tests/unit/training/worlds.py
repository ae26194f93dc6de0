"""Small made-up sources whose figures can be worked out by hand.

With fewer than 100 products a search returns every product that holds any of its words, so
``own`` is a matter of counting titles, and a fusion is a union.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import polars as pl

from training.data.pairs import World
from training.data.schema import SCHEMAS, Tables


def make_tables(
    titles: Mapping[str, str],
    grades: Mapping[str, Mapping[str, float]],
    corrections: Mapping[str, str] | None = None,
    clicks: Mapping[str, Mapping[str, int]] | None = None,
) -> Tables:
    """Tables from dictionaries; every query of ``grades`` and ``clicks`` becomes a query."""
    corrections, clicks = corrections or {}, clicks or {}
    when = datetime(2020, 1, 1, tzinfo=UTC)
    rows: dict[str, Sequence[tuple[object, ...]]] = {
        "catalogue": list(titles.items()),
        "queries": [(q, corrections.get(q, q), 1) for q in dict.fromkeys([*grades, *clicks])],
        "judgements": [(q, p, float(g)) for q, found in grades.items() for p, g in found.items()],
        "interactions": [
            (q, p, "click", n, when) for q, found in clicks.items() for p, n in found.items()
        ],
        "rewrites": [(q, r, "spelling") for q, r in corrections.items()],
    }
    return Tables(
        **{
            name: pl.DataFrame(rows[name], schema=schema, orient="row")
            for name, schema in SCHEMAS.items()
        }
    )


def make_world(
    titles: Mapping[str, str],
    grades: Mapping[str, Mapping[str, float]],
    corrections: Mapping[str, str] | None = None,
    clicks: Mapping[str, Mapping[str, int]] | None = None,
) -> World:
    return World(make_tables(titles, grades, corrections, clicks))


THINGS = ("hammer", "bucket", "ladder", "faucet", "drill", "mower", "heater", "carpet")
MATERIALS = ("steel", "oak", "brass", "nylon", "copper", "pine", "glass", "rubber", "cedar", "zinc")


def shop_tables() -> Tables:
    """80 products and 160 queries, enough of every fold for a whole training run."""
    titles: dict[str, str] = {}
    grades: dict[str, dict[str, float]] = {}
    corrections: dict[str, str] = {}
    for i, thing in enumerate(THINGS):
        for j, material in enumerate(MATERIALS):
            product = f"p{i}{j}"
            titles[product] = f"{material} {thing} for the house"
            other = f"p{i}{(j + 1) % len(MATERIALS)}"
            bad = f"p{(i + 1) % len(THINGS)}{j}"
            grades[f"{material} {thing}"] = {product: 3.0, other: 2.33, bad: 1.0}
            typed = f"{material} {thing[:2]}{thing[1:]}"
            grades[typed] = {product: 3.0}
            corrections[typed] = f"{material} {thing}"
    return make_tables(titles, grades, corrections)


def rooms_world() -> World:
    """Six models of each of 40 things for each of six rooms; each thing has a second name.

    Big enough for searches that find some of a thing's products and not others; no grades.
    """
    rooms = ("kitchen", "garden", "garage", "office", "attic", "cellar")
    kinds = [f"{material}{thing}" for thing in THINGS for material in MATERIALS[:5]]
    titles = {
        f"{kind}-{room}-{n}": f"{room} {kind} {kind}ette model {n}"
        for n in range(6)
        for kind in kinds
        for room in rooms
    }
    words = [word for kind in kinds for word in (kind, f"{kind}ette")]
    queries = [*words, *(f"{room} {word}" for word in words for room in rooms)]
    return make_world(titles, {q: {} for q in queries} | {"hamer": {}}, {"hamer": "hammer"})
