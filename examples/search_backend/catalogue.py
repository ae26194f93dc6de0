"""The catalogue, a CSV file of products, and a search engine over it (tantivy's BM25)."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tantivy

CATALOGUE = Path(__file__).with_name("catalogue.csv")
"""Some 200 products that nobody sells: we made them up."""


@dataclass(frozen=True, slots=True)
class Product:
    """What can be found."""

    product_id: str
    title: str
    category: str


def read(path: Path = CATALOGUE) -> list[Product]:
    """The products of a CSV file with the columns product_id, title and category.

    Raises:
        OSError: it cannot be read.
        ValueError: a column is missing.
    """
    with path.open(newline="", encoding="utf-8") as file:
        rows = csv.DictReader(file)
        missing = {"product_id", "title", "category"} - set(rows.fieldnames or ())
        if missing:
            raise ValueError(f"{path} has no column {', '.join(sorted(missing))}")
        return [Product(row["product_id"], row["title"], row["category"]) for row in rows]


class Index:
    """Finds products by the words of their titles: any word may match, as it is written.

    Args:
        products: what can be found.
    """

    def __init__(self, products: Sequence[Product]) -> None:
        self.products = {product.product_id: product for product in products}
        builder = tantivy.SchemaBuilder()
        builder.add_text_field("product_id", stored=True, tokenizer_name="raw")
        builder.add_text_field("title", tokenizer_name="default")
        index = tantivy.Index(builder.build())
        writer = index.writer(heap_size=50_000_000, num_threads=1)
        for product in products:
            writer.add_document(
                tantivy.Document(product_id=product.product_id, title=product.title)
            )
        writer.commit()
        writer.wait_merging_threads()
        index.reload()
        self._index, self._searcher = index, index.searcher()

    def search(self, text: str, depth: int = 100) -> list[str]:
        """Ids of the best products for ``text``, best first."""
        # A shopper's text is words, never the query language.
        words = "".join(c if c.isalnum() else " " for c in text.lower())
        if not words.strip():
            return []
        query, _errors = self._index.parse_query_lenient(words, ["title"])
        hits = self._searcher.search(query, depth).hits
        return [self._searcher.doc(address)["product_id"][0] for _score, address in hits]
