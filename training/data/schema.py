"""The one data schema of training: five tables, Parquet on disk.

A team's own logs fit it as they are; every reader in :mod:`training.data.readers` produces it.

========================  ==========================================================
``catalogue.parquet``     ``product_id`` string, ``title`` string
``queries.parquet``       ``query`` string (as typed), ``canonical`` string (corrected
                          spelling, else the query itself; decides the fold),
                          ``searches`` int64 (how often; 1 if unknown)
``judgements.parquet``    ``query``, ``product_id``, ``grade`` float64 (1 bad .. 3 perfect)
``interactions.parquet``  ``query``, ``product_id``, ``kind`` (click | purchase),
                          ``count`` int64, ``last`` timestamp[us] (UTC)
``rewrites.parquet``      ``query``, ``rewrite``, ``source`` string (who says so)
========================  ==========================================================

Tables that a source does not have are empty, never absent. A judgement or an interaction counts
if its query is in ``queries`` and its product in ``catalogue``; others are passed over.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass, fields, replace
from datetime import datetime
from pathlib import Path

import polars as pl

from training.errors import DataError

GRADE_RELEVANT = 2.33
"""From this grade on a product counts as relevant to a query (1-3 scale)."""
GRADE_ENGAGED = 2.67
"""From this grade on a shopper is taken to engage with the product (simulated)."""
GRADE_BAD = 1.67
"""Up to this grade a product is judged bad for a query."""

SCHEMAS: dict[str, dict[str, pl.DataType]] = {
    "catalogue": {"product_id": pl.String(), "title": pl.String()},
    "queries": {"query": pl.String(), "canonical": pl.String(), "searches": pl.Int64()},
    "judgements": {"query": pl.String(), "product_id": pl.String(), "grade": pl.Float64()},
    "interactions": {
        "query": pl.String(),
        "product_id": pl.String(),
        "kind": pl.String(),
        "count": pl.Int64(),
        "last": pl.Datetime("us", "UTC"),
    },
    "rewrites": {"query": pl.String(), "rewrite": pl.String(), "source": pl.String()},
}


@dataclass(frozen=True, slots=True)
class Tables:
    """One source's data. Columns, their order and types are those of :data:`SCHEMAS`.

    Raises:
        DataError: a table lacks a column, has one of another type, or holds nulls.
    """

    catalogue: pl.DataFrame
    queries: pl.DataFrame
    judgements: pl.DataFrame
    interactions: pl.DataFrame
    rewrites: pl.DataFrame

    def __post_init__(self) -> None:
        for name, schema in SCHEMAS.items():
            frame: pl.DataFrame = getattr(self, name)
            # Rows are read by position: the order of the columns counts.
            if list(frame.schema.items()) != list(schema.items()):
                want = ", ".join(f"{column} {kind}" for column, kind in schema.items())
                have = ", ".join(f"{column} {kind}" for column, kind in frame.schema.items())
                raise DataError(f"table {name!r}: expected columns {want}; got {have or 'none'}")
            nulls = [c.name for c in frame if c.null_count()]
            if nulls:
                raise DataError(f"table {name!r}: column {nulls[0]!r} has empty values; drop them")

    def save(self, folder: Path) -> None:
        """Write ``<table>.parquet`` files; each is whole or absent, also after a kill."""
        folder.mkdir(parents=True, exist_ok=True)
        for field in fields(self):
            frame: pl.DataFrame = getattr(self, field.name)
            handle, name = tempfile.mkstemp(dir=folder, suffix=".partial")
            os.close(handle)
            try:
                frame.write_parquet(name)
                Path(name).replace(folder / f"{field.name}.parquet")
            finally:
                Path(name).unlink(missing_ok=True)

    def since(self, when: datetime) -> Tables:
        """What shoppers did from then on, and the queries that they did it for.

        Raises:
            DataError: there is no interaction since then.
        """
        recent = self.interactions.filter(pl.col("last") >= when)
        if recent.is_empty():
            raise DataError(f"there are no interactions since {when:%Y-%m-%d}")
        return replace(
            self,
            interactions=recent,
            queries=self.queries.join(recent.select("query").unique(), on="query", how="semi"),
        )

    @classmethod
    def load(cls, folder: Path) -> Tables:
        """Read a folder that :meth:`save`, or a team's own export, wrote; columns in any order.

        Raises:
            DataError: a file is missing, is no Parquet file or is not in the schema.
        """
        frames: dict[str, pl.DataFrame] = {}
        for name, schema in SCHEMAS.items():
            path = folder / f"{name}.parquet"
            if not path.is_file():
                raise DataError(f"{path} is missing; a table without rows is an empty file")
            try:
                frame = pl.read_parquet(path)
            except pl.exceptions.PolarsError as error:
                raise DataError(f"{path} is not a Parquet file: {error}") from error
            frames[name] = (
                frame.select(list(schema)) if set(frame.columns) == set(schema) else frame
            )
        return cls(**frames)


def empty(table: str) -> pl.DataFrame:
    """A table of the schema without rows."""
    return pl.DataFrame(schema=SCHEMAS[table])
