"""A shop's products, read from its own export."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from tqdm import tqdm

from model_store.text import normalise
from service.precompute.readers import Format
from training.adapt.rows import BadRows, Columns, read_rows
from training.errors import DataError

USUAL: Mapping[str, tuple[str, ...]] = {
    "title": (
        "title", "name", "product_title", "product_name", "item_name", "item_title",
        "productdisplayname", "product", "label",
    ),
    "id": (
        "id", "sku", "product_id", "item_id", "asin", "product_uid", "productid", "item", "gtin",
        "handle", "code",
    ),
    "brand": ("brand", "brand_name", "manufacturer", "vendor", "product_brand"),
    "category": (
        "category", "categories", "product_type", "category_path", "category_name",
        "google_product_category", "department", "type",
    ),
    "description": ("description", "product_description", "body", "long_description", "summary"),
}  # fmt: skip
"""Field -> usual names of its column, the likeliest first; case, spaces and hyphens are ignored."""
LONGEST_TITLE = 2000
"""Characters of a title that are read."""
_LONGEST_DESCRIPTION = 4000
_NO_BRAND = frozenset(
    ("generic", "unbranded", "no brand", "n/a", "na", "none", "other", "unknown", "null", "-")
)


@dataclass(slots=True)
class Catalogue:
    """What a shop sells.

    Attributes:
        titles: product id -> title in normal form.
        brands: brand in normal form -> its products, and of them those whose title names it.
        categories: product id -> the narrowest part of its category, in normal form.
        described: words of descriptions -> how often they come.
        columns: field -> column that it was read from, of all files.
        rows: rows read, the bad ones not counted.
        untitled: rows without a title.
        repeated: rows whose id came before, or whose title did in a file without ids.
        same_title: products that share their title with an earlier one.
        cut: titles longer than :data:`LONGEST_TITLE`.
        bad: rows that could not be read.
    """

    titles: dict[str, str] = field(default_factory=dict)
    brands: dict[str, list[int]] = field(default_factory=dict)
    categories: dict[str, str] = field(default_factory=dict)
    described: Counter[str] = field(default_factory=Counter)
    fields: set[str] = field(default_factory=set)
    rows: int = 0
    untitled: int = 0
    repeated: int = 0
    same_title: int = 0
    cut: int = 0
    bad: BadRows = field(default_factory=BadRows)

    def __len__(self) -> int:
        return len(self.titles)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of what is learnt from."""
        whole = sha256()
        for parts in (self.titles, self.categories, self.brands):
            for key, value in parts.items():
                whole.update(f"{key}\0{value}\n".encode())
        return whole.hexdigest()

    def searched(self) -> Iterator[str]:
        """What a shop's search looks through: title and category of each product."""
        for key, title in self.titles.items():
            yield f"{title} {self.categories.get(key, '')}"

    def summary(self) -> dict[str, Any]:
        """Counts, for the report and the manifest."""
        return {
            "products": len(self), "rows": self.rows, "without_title": self.untitled,
            "repeated": self.repeated, "same_title": self.same_title, "cut": self.cut,
            "bad_rows": self.bad.count, "bad_rows_told": self.bad.told,
            "fields": sorted(self.fields), "brands": len(self.brands),
            "categories": len(set(self.categories.values())),
        }  # fmt: skip


def read_catalogue(
    path: Path, given: Mapping[str, str | None] | None = None, kind: Format | None = None
) -> Catalogue:
    """Read the products of a file, a folder of files or standard input (``-``).

    Args:
        path: CSV, TSV, JSON Lines, JSON or Parquet; may be compressed by gzip.
        given: fields of :data:`USUAL` -> the columns that they are in.
        kind: of the file; default: by its name or content.

    Raises:
        DataError: it cannot be read, has no column of titles, or no product.
    """
    found = Catalogue()
    titles: set[int] = set()
    rows = read_rows(path, Columns(USUAL, given), ("title",), found.bad, kind)
    for row in tqdm(rows, desc="reading products", unit="row", mininterval=0.5):
        found.rows += 1
        found.fields |= row.keys()
        _take(found, row, titles)
    if not found.titles:
        raise DataError(
            f"{path}: has no product with a title ({found.rows} rows, {found.bad.count} of them "
            f"bad{': ' + found.bad.told[0] if found.bad.told else ''})"
        )
    return found


def _take(found: Catalogue, row: Mapping[str, str], seen: set[int]) -> None:
    raw = row.get("title", "")
    found.cut += len(raw) > LONGEST_TITLE
    title = normalise(raw[:LONGEST_TITLE], fold_case=True)
    if not any(map(str.isalnum, title)):
        found.untitled += 1
        return
    # Hashes of titles, because a set of texts would keep a long catalogue twice.
    same = hash(title) in seen
    key = row.get("id") or f"row {found.rows}"
    if key in found.titles or (same and "id" not in row):
        found.repeated += 1
        return
    seen.add(hash(title))
    found.same_title += same
    found.titles[key] = title
    brand = normalise(row.get("brand", "")[:64], fold_case=True)
    if len(brand) > 1 and brand not in _NO_BRAND and any(map(str.isalpha, brand)):
        counts = found.brands.setdefault(brand, [0, 0])
        counts[0] += 1
        counts[1] += f" {brand} " in f" {title} "
    if category := narrowest(row.get("category", "")):
        found.categories[key] = category
    if description := row.get("description"):
        text = normalise(description[:_LONGEST_DESCRIPTION], fold_case=True)
        found.described.update(word for word in text.split() if word.isalpha())


def narrowest(category: str) -> str:
    """The last part of a path ("pantry > spices"), in normal form."""
    parts = category.replace("|", ">").replace("/", ">").split(">")
    return normalise(parts[-1][:64], fold_case=True)
