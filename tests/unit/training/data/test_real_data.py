"""The published facts of the public data, where somebody has put it."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pytest

from training.data.dataset import split
from training.data.folds import DEVELOPMENT, HELD_OUT, fold_of, variants
from training.data.pairs import PairMiner, World
from training.data.readers import best_buy, home_depot
from training.data.schema import Tables
from training.errors import DataError

ROOT = Path(__file__).parents[4]
# Read before any test runs: a fixture hides REQUERY_ variables from the tests themselves.
PLACES = [
    Path(p) for p in (os.environ.get("REQUERY_DATA"), ROOT / "data", ROOT / "../shared/data") if p
]


def found(name: str) -> Path:
    for place in PLACES:
        if (place / name).is_dir():
            return place / name
    pytest.skip(
        f"the public data is not here: docs/training.md says where {name} comes from; put it into "
        "data/, or set REQUERY_DATA to the folder that holds it"
    )


def read(name: str) -> Tables:
    folder = found(name)
    reader = {"home_depot": home_depot.read, "best_buy": best_buy.read}[name]
    try:
        return reader(folder)
    except DataError as error:
        pytest.fail(str(error))


@pytest.fixture(scope="module")
def tables() -> Tables:
    return read("home_depot")


@pytest.fixture(scope="module")
def world(tables: Tables) -> World:
    return World(tables)


def test_home_depot(tables: Tables) -> None:
    assert len(tables.judgements) == 74_067
    assert len(tables.queries) == 11_795
    assert len(tables.catalogue) == 54_667
    assert tables.judgements["grade"].min() == 1.0
    assert tables.judgements["grade"].max() == 3.0
    assert set(tables.judgements["product_id"]) == set(tables.catalogue["product_id"])
    assert len(tables.rewrites) == 3_428
    assert len(set(tables.rewrites["query"]) & set(tables.queries["query"])) == 1_640
    assert "steele stake" in tables.rewrites["query"]
    # Latin-1 that was read as something else would show as a replacement character.
    assert not [t for t in tables.catalogue["title"] if "\ufffd" in t]


def test_its_split(world: World) -> None:
    parts = split(world)
    assert len(world.with_relevant(parts.held_out)) == 1_157
    folds = {fold_of(world.canonical[q]) for q in parts.train}
    assert folds == set(range(10)) - {HELD_OUT, DEVELOPMENT}
    protected = [*parts.held_out, *parts.development]
    assert not set(parts.train) & set(protected)
    sample = parts.train[::9]
    assert variants(sample, protected) == set()
    miner = PairMiner(world, parts.train, 7)
    hidden = set(protected)
    for query in world.with_relevant(parts.train)[::97]:
        mined = miner.mine(query)
        for scored in mined.write + mined.accept + mined.reject:
            if scored.source in ("co-relevant", "look-alike"):
                assert scored.text not in hidden


def test_best_buy() -> None:
    tables = read("best_buy")
    clicks = tables.interactions
    assert clicks["count"].sum() == 42_365
    assert clicks["product_id"].n_unique() == 413
    assert len(tables.catalogue) == 437
    assert tables.queries["searches"].sum() == 42_365
    earliest, latest = clicks["last"].min(), clicks["last"].max()
    assert isinstance(earliest, datetime)
    assert isinstance(latest, datetime)
    assert datetime(2011, 8, 1, tzinfo=UTC) < earliest < latest < datetime(2011, 11, 1, tzinfo=UTC)


def test_best_buy_can_be_mined() -> None:
    world = World(read("best_buy"))
    parts = split(world)
    assert len(world.with_relevant(parts.held_out)) > 300
    # Somebody who searched "zumba" also clicked another fitness game; it is not what was asked.
    assert all("zumba" in world.titles[p].lower() for p in world.relevant["zumba"])
    mined = PairMiner(world, parts.train, 7).mine("zumba")
    assert mined.write
    assert all("zumba" in s.text for s in mined.write)
