"""A small grocery's products, made up here."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_BRANDS = ("Nutty Valley", "Oatwell", "Green Grove", "Fizzo")
_KINDS = {
    "peanut butter": "pantry > spreads",
    "almond butter": "pantry > spreads",
    "oat milk": "dairy > plant milk",
    "avocado oil": "pantry > oils",
    "olive oil": "pantry > oils",
    "soft drink": "drinks > soft drinks",
    "quinoa flakes": "pantry > grains",
    "kombucha": "drinks > tea",
}
_FORMS = ("Organic {}, 500 g", "{} Unsweetened, 1 l", "{} Family Pack, 2 x 250 g")


def groceries() -> list[dict[str, Any]]:
    """96 products: each kind of each brand in three forms."""
    return [
        {
            "sku": f"p{i}-{j}-{k}",
            "name": f"{brand} {form.format(kind.title())}",
            "brand": brand,
            "category": category,
            "price": 3.5,
        }
        for i, brand in enumerate(_BRANDS)
        for j, (kind, category) in enumerate(_KINDS.items())
        for k, form in enumerate(_FORMS)
    ]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write products in the format that the file's name says."""
    kind = path.suffixes[0]
    if kind in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            style = {} if kind == ".csv" else {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
            writer = csv.DictWriter(file, [*rows[0]], **style)  # type: ignore[arg-type]
            writer.writeheader()
            writer.writerows(rows)
    elif kind == ".json":
        path.write_text(json.dumps(rows))
    elif kind == ".jsonl":
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    return path
