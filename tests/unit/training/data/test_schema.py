from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tests.unit.training.worlds import make_tables, make_world, shop_tables
from training.data.schema import SCHEMAS, Tables, empty
from training.errors import DataError


def frames(tables: Tables) -> dict[str, pl.DataFrame]:
    return {name: getattr(tables, name) for name in SCHEMAS}


@pytest.fixture
def tables() -> Tables:
    return make_tables(
        {"p1": 'Häm "mer", 3/4 in.'},
        {"hämmer": {"p1": 2.5}},
        {"hämmer": "hammer"},
        {"hämmer": {"p1": 7}},
    )


def test_a_round_trip_changes_nothing(tables: Tables, tmp_path: Path) -> None:
    tables.save(tmp_path / "deep" / "folder")
    again = Tables.load(tmp_path / "deep" / "folder")
    for name, frame in frames(tables).items():
        assert frame.equals(getattr(again, name)), name
    assert again.interactions["last"][0] == datetime(2020, 1, 1, tzinfo=UTC)


def test_empty_tables_keep_their_columns(tmp_path: Path) -> None:
    Tables(**{name: empty(name) for name in SCHEMAS}).save(tmp_path)
    assert Tables.load(tmp_path).interactions.schema == SCHEMAS["interactions"]


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_missing_table_is_named(tables: Tables, tmp_path: Path, name: str) -> None:
    tables.save(tmp_path)
    (tmp_path / f"{name}.parquet").unlink()
    with pytest.raises(DataError, match=rf"{name}\.parquet is missing"):
        Tables.load(tmp_path)


def test_a_file_that_is_no_parquet_is_named(tables: Tables, tmp_path: Path) -> None:
    tables.save(tmp_path)
    (tmp_path / "queries.parquet").write_bytes(b"query,canonical\n")
    with pytest.raises(DataError, match=r"queries\.parquet is not a Parquet file"):
        Tables.load(tmp_path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("judgements", lambda f: f.rename({"grade": "relevance"})),
        ("judgements", lambda f: f.with_columns(pl.col("grade").cast(pl.Int64))),
        ("queries", lambda f: f.drop("searches")),
        ("catalogue", lambda f: f.with_columns(brand=pl.lit("x"))),
        ("interactions", lambda f: f.with_columns(pl.col("last").dt.replace_time_zone(None))),
    ],
)
def test_a_wrong_column_is_refused_with_what_was_expected(
    tables: Tables, tmp_path: Path, name: str, change: Any
) -> None:
    tables.save(tmp_path)
    change(getattr(tables, name)).write_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(DataError) as caught:
        Tables.load(tmp_path)
    message = str(caught.value)
    assert f"table {name!r}" in message
    assert all(column in message for column in SCHEMAS[name])


def test_columns_in_another_order_are_put_right_when_read(tables: Tables, tmp_path: Path) -> None:
    # Rows are read by position: product ids must not be taken for queries.
    tables.save(tmp_path)
    swapped = tables.judgements.select("product_id", "query", "grade")
    swapped.write_parquet(tmp_path / "judgements.parquet")
    assert Tables.load(tmp_path).judgements.equals(tables.judgements)
    with pytest.raises(DataError, match="judgements"):
        Tables(**{**frames(tables), "judgements": swapped})


def test_empty_values_are_refused_with_their_column(tables: Tables) -> None:
    broken = tables.catalogue.with_columns(title=pl.lit(None, dtype=pl.String))
    with pytest.raises(DataError, match="'catalogue': column 'title' has empty values"):
        Tables(**{**frames(tables), "catalogue": broken})


def test_a_failed_write_leaves_nothing_half_written(
    tables: Tables, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop_tables().save(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(_: pl.DataFrame, file: str) -> None:
        Path(file).write_bytes(b"PAR1 half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", full)
    with pytest.raises(OSError, match="No space left"):
        tables.save(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


class TestWorld:
    def test_spellings_that_fold_to_one_form_share_their_grades(self) -> None:
        world = make_world(
            {"a": "steel hammer", "b": "oak hammer"},
            {"Steel  Hammer": {"a": 3}, "steel hammer": {"b": 2.33}},
        )
        assert world.relevant == {"steel hammer": {"a", "b"}}
        assert world.raw == {"steel hammer": "Steel  Hammer"}

    def test_relevant_starts_at_grade_2_33(self) -> None:
        world = make_world(
            {"a": "one", "b": "two", "c": "three"}, {"q": {"a": 2.33, "b": 2.32, "c": 3}}
        )
        assert world.relevant["q"] == {"a", "c"}

    def test_clicks_stand_for_judgements_where_there_are_none(self) -> None:
        world = make_world({"a": "halo", "b": "gears"}, {"game": {"a": 1.0}}, None, {
            "game": {"a": 5, "b": 5}, "HALO": {"a": 1}})  # fmt: skip
        # A grade given by a person is stronger than a click.
        assert world.relevant == {"game": {"b"}, "halo": {"a"}}

    def test_a_stray_click_is_not_taken_for_relevance(self) -> None:
        titles = {"a": "zumba", "b": "biggest loser", "c": "halo"}
        world = make_world(titles, {}, None, {"zumba": {"a": 100, "b": 10, "c": 9}})
        assert world.relevant["zumba"] == {"a", "b"}

    def test_clicks_of_one_query_in_two_spellings_are_counted_together(self) -> None:
        titles = {"a": "zumba", "b": "halo"}
        world = make_world(titles, {}, None, {"zumba": {"a": 5, "b": 1}, "ZUMBA": {"a": 6}})
        assert world.relevant["zumba"] == {"a"}

    def test_products_that_the_catalogue_lacks_count_for_nothing(self) -> None:
        world = make_world({"a": "halo"}, {"x": {"gone": 3.0}}, None, {"halo": {"a": 1, "gone": 9}})
        assert world.with_relevant(["x", "halo", "never asked"]) == ["halo"]
        assert world.relevant["halo"] == {"a"}
