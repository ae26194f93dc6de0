"""Home Depot: real queries, product titles and mean human relevance grades.

Source: Kaggle, "Home Depot Product Search Relevance" (2016), file ``train.csv`` (latin-1;
columns ``product_uid``, ``product_title``, ``search_term``, ``relevance``); competition data,
research use. Optional: ``google_spell_pairs.tsv`` (columns ``query``, ``corrected``), the
dictionary of search-engine suggestions shared on the competition's forum
(ChenglongChen/Kaggle_HomeDepot, MIT).
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from training.data.schema import Tables, empty
from training.errors import DataError

_HOW = (
    "get train.csv from Kaggle's 'Home Depot Product Search Relevance' competition and put it "
    "into <data>/home_depot/, where <data> is REQUERY_DATA or the recipe's data folder"
)


def read(folder: Path) -> Tables:
    """Read ``folder`` (the one that holds ``train.csv``).

    Raises:
        DataError: the file is missing or lacks a column.
    """
    path = folder / "train.csv"
    if not path.is_file():
        raise DataError(f"{path} not found; {_HOW}")
    try:
        # No guessing of types: a query "007" is text.
        raw = pl.read_csv(path, encoding="latin-1", infer_schema=False).select(
            pl.col("search_term").alias("query"),
            pl.col("product_uid").alias("product_id"),
            pl.col("product_title").alias("title"),
            pl.col("relevance").cast(pl.Float64).alias("grade"),
        )
    except (pl.exceptions.PolarsError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not the competition's train.csv ({error}); {_HOW}") from error
    corrections = _corrections(folder / "google_spell_pairs.tsv")
    queries = (
        raw.select("query")
        .unique(maintain_order=True)
        .join(corrections, on="query", how="left")
        .select(
            "query",
            pl.coalesce("rewrite", "query").alias("canonical"),
            pl.lit(1, dtype=pl.Int64).alias("searches"),
        )
    )
    return Tables(
        catalogue=raw.select("product_id", "title").unique("product_id", maintain_order=True),
        queries=queries,
        judgements=raw.select("query", "product_id", "grade"),
        interactions=empty("interactions"),
        rewrites=corrections.with_columns(pl.lit("spelling").alias("source")),
    )


def _corrections(path: Path) -> pl.DataFrame:
    """``query``, ``rewrite`` of the dictionary; empty if the optional file is not there."""
    if not path.is_file():
        return empty("rewrites").select("query", "rewrite")
    try:
        frame = pl.read_csv(path, separator="\t", quote_char=None, infer_schema=False)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{path} is not the dictionary of spellings: {error}") from error
    if frame.columns != ["query", "corrected"]:
        raise DataError(f"{path}: expected the columns query, corrected; got {frame.columns}")
    return frame.rename({"corrected": "rewrite"}).drop_nulls().unique("query", maintain_order=True)
