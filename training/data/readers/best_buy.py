"""Best Buy: real clicks on Xbox games after a search (Aug-Oct 2011).

Source: ACM SF Chapter hackathon 2012 (small set, on Kaggle as "Best Buy mobile web site"), the
click file with the columns ``user,sku,category,query,click_time,query_time``, here in parts
``clicks_part*.csv`` (the original ``train.csv`` works too), and ``sku_name.tsv`` with the columns
SKU and product name (zygmuntz/kaggle-bestbuy_small, MIT). Competition data, research use.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from training.data.schema import Tables, empty
from training.errors import DataError

_HOW = (
    "get the small set of the ACM SF hackathon 2012 (Best Buy) from Kaggle and put train.csv (or "
    "clicks_part*.csv) and sku_name.tsv into <data>/best_buy/"
)


def read(folder: Path) -> Tables:
    """Read ``folder``. Clicks of one query and product are counted; ``last`` is the latest.

    Raises:
        DataError: a file is missing, lacks a column, or holds a time that is none.
    """
    parts = sorted(folder.glob("clicks_part*.csv")) or sorted(folder.glob("train.csv"))
    names = folder / "sku_name.tsv"
    if not parts or not names.is_file():
        missing = names if parts else folder / "train.csv"
        raise DataError(f"{missing} not found; {_HOW}")
    try:
        clicks = pl.concat([pl.read_csv(p, infer_schema=False) for p in parts]).select(
            pl.col("query"),
            pl.col("sku").alias("product_id"),
            pl.col("click_time").alias("typed"),
            # Some times have a fraction of a second and some have none.
            pl.col("click_time").str.to_datetime(
                "%Y-%m-%d %H:%M:%S%.f", time_unit="us", time_zone="UTC", strict=False
            ),
        )
    except pl.exceptions.PolarsError as error:
        raise DataError(f"{folder}: not the hackathon's click file ({error}); {_HOW}") from error
    wrong = clicks.filter(pl.col("click_time").is_null() & pl.col("typed").is_not_null())
    if len(wrong):
        raise DataError(f"{folder}: {wrong['typed'][0]!r} is no click_time; {_HOW}")
    clicks = clicks.drop_nulls().filter(pl.col("query").str.strip_chars() != "")
    try:
        text = names.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{names} is not UTF-8 ({error}); {_HOW}") from error
    rows = [line.split("\t") for line in text.split("\n") if line]
    if not all(len(r) == 2 for r in rows):
        raise DataError(f"{names}: expected two columns, SKU and name, with a tab between; {_HOW}")
    catalogue = pl.DataFrame(
        rows, schema={"product_id": pl.String, "title": pl.String}, orient="row"
    )
    searches = clicks.group_by("query", maintain_order=True).len("searches")
    return Tables(
        catalogue=catalogue.unique("product_id", maintain_order=True),
        queries=searches.select(
            "query", pl.col("query").alias("canonical"), pl.col("searches").cast(pl.Int64)
        ),
        judgements=empty("judgements"),
        interactions=clicks.group_by("query", "product_id", maintain_order=True).agg(
            pl.lit("click").alias("kind"),
            pl.len().cast(pl.Int64).alias("count"),
            pl.col("click_time").max().alias("last"),
        ),
        rewrites=empty("rewrites"),
    )
