"""What a shop knows of its searches: a log with or without clicks, grades, synonyms."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from model_store.text import MAX_QUERY_CHARS, normalise
from service.precompute.readers import COUNT_COLUMNS, QUERY_COLUMNS
from training.adapt.queries import LOG, KnownQuery
from training.adapt.rows import BadRows, Columns, read_rows
from training.errors import DataError

_IDS = ("product_id", "sku", "item_id", "id", "asin", "product", "object_id", "clicked_id")
SEARCHES: Mapping[str, tuple[str, ...]] = {
    # OpenSearch's User Behavior Insights: ubi_queries, and ubi_events with a nested object.
    "query": ("user_query", *QUERY_COLUMNS),
    "count": COUNT_COLUMNS,
    "query_id": ("query_id",),
    "product": ("event_attributes.object.object_id", *_IDS),
    "event": ("action_name", "event", "event_type", "kind", "action"),
    "time": ("timestamp", "time", "date"),
}
"""Field -> usual names of its column in a log of searches."""
GRADES: Mapping[str, tuple[str, ...]] = {
    "query": QUERY_COLUMNS, "product": _IDS,
    "grade": ("grade", "rating", "relevance", "judgement", "judgment", "label", "score"),
}  # fmt: skip
_TAKEN = re.compile(
    r"click|purchase|buy|bought|order|cart|basket|checkout|conversion", re.IGNORECASE
)
"""Events that say that a shopper wanted a product; a view of results does not."""
_SEARCHED = re.compile(r"(?i)search|query")
_SHARE = 0.1
"""Of the clicks of the query's most clicked product, from which another one counts."""


@dataclass(slots=True)
class Evidence:
    """What is known of a shop's searches.

    Attributes:
        searches: query in normal form -> how often it was asked.
        relevant: query in normal form -> ids of the products that it means, by grades or clicks.
        graded: whether there are grades.
        bad: rows that could not be read.
    """

    searches: Counter[str] = field(default_factory=Counter)
    relevant: dict[str, frozenset[str]] = field(default_factory=dict)
    graded: bool = False
    bad: BadRows = field(default_factory=BadRows)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of what is known."""
        rows = [
            *(f"{query}\0{n}" for query, n in sorted(self.searches.items())),
            *(f"{query}\0{sorted(ids)}" for query, ids in sorted(self.relevant.items())),
        ]
        return sha256("\n".join(rows).encode()).hexdigest()

    def summary(self, products: Mapping[str, Any]) -> dict[str, Any]:
        """Counts, for the report."""
        named = frozenset().union(*self.relevant.values())
        return {
            "different_searches": len(self.searches), "searches": self.searches.total(),
            "queries_with_products": len(self.relevant), "graded": self.graded,
            "unknown_products": len(named.difference(products)),
            "bad_rows": self.bad.count, "bad_rows_told": self.bad.told,
        }  # fmt: skip

    def known(self, products: Mapping[str, Any], depth: int) -> list[KnownQuery]:
        """Queries with products that the shop has, the most frequent first.

        Args:
            products: by id.
            depth: most products of a query, because more than a search shows cannot be found.
        """
        found = []
        for query in sorted(self.relevant, key=lambda q: (-self.searches[q], q)):
            ids = frozenset(one for one in self.relevant[query] if one in products)
            if 0 < len(ids) <= depth:
                found.append(KnownQuery(query, ids, LOG, query))
        return found


def read_evidence(searches: Sequence[Path], judgements: Path | None) -> Evidence:
    """Read logs and grades.

    Args:
        searches: files with a query each row; or UBI's two, in any order.
        judgements: file of query, product and grade. Those of the upper half of the grades' range
            count as relevant, and go before clicks.

    Raises:
        DataError: a file cannot be read, or lacks a column.
    """
    found = Evidence()
    clicks: defaultdict[str, Counter[str]] = defaultdict(Counter)
    asked: dict[str, str] = {}
    taken: list[tuple[str, str, str, int]] = []
    for path in searches:
        for row in read_rows(path, Columns(SEARCHES), ("query", "query_id"), found.bad):
            query, key = _query(row.get("query", "")), row.get("query_id", "")
            product, event = row.get("product", ""), row.get("event", "")
            count = _count(row.get("count"))
            if query and key:
                asked[key] = query
            if product and (not event or _TAKEN.search(event)):
                taken.append((query, key, product, count))
            if query and (not event or _SEARCHED.search(event)):
                found.searches[query] += count
    # UBI's events name the query by its id, and may be read before it.
    for query, key, product, count in taken:
        if meant := query or asked.get(key, ""):
            clicks[meant][product] += count
    for query, products in clicks.items():
        least = _SHARE * max(products.values())
        found.relevant[query] = frozenset(p for p, n in products.items() if n >= least)
    if judgements is not None:
        _grade(judgements, found)
    return found


def _grade(path: Path, found: Evidence) -> None:
    rows: list[tuple[str, str, float]] = []
    for number, row in enumerate(read_rows(path, Columns(GRADES), ("grade",), found.bad), start=1):
        query, product = _query(row.get("query", "")), row.get("product", "")
        try:
            rows.append((query, product, float(row.get("grade", ""))))
        except ValueError:
            found.bad.add(f"{path.name}: row {number}", "has no number as grade")
    grades = [grade for query, product, grade in rows if query and product]
    if not grades:
        raise DataError(f"{path}: has no row with a query, a product id and a grade")
    least = (min(grades) + max(grades)) / 2
    relevant: defaultdict[str, set[str]] = defaultdict(set)
    for query, product, grade in rows:
        if query and product and (grade > least or min(grades) == max(grades)):
            relevant[query].add(product)
    found.graded = True
    found.relevant |= {query: frozenset(ids) for query, ids in relevant.items()}


def _query(text: str) -> str:
    text = normalise(text, fold_case=True)
    return text if len(text) <= MAX_QUERY_CHARS else ""


def _count(text: str | None) -> int:
    try:
        return max(0, int(float(text or "1")))
    except (ValueError, OverflowError):
        return 1


def read_synonyms(path: Path) -> dict[str, list[str]]:
    """Synonyms in Solr's format: term in normal form -> other terms for it.

    ``couch, sofa`` are equivalents, ``tv => television`` goes one way; ``#`` begins a comment.

    Raises:
        DataError: the file cannot be read, or a line is of another form.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error
    found: defaultdict[str, dict[str, None]] = defaultdict(dict)
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        left, arrow, right = text.partition("=>")
        terms, others = _terms(left), _terms(right) if arrow else _terms(left)
        if not terms or not others or (not arrow and len(terms) < 2):
            raise DataError(f"{path}: line {number} is neither 'a, b' nor 'a => b': {text[:60]}")
        for term in terms:
            found[term] |= dict.fromkeys(one for one in others if one != term)
    return {term: [*others] for term, others in found.items() if others}


def _terms(text: str) -> list[str]:
    parts: Iterable[str] = re.split(r"(?<!\\),", text)
    found = (normalise(part.replace("\\", ""), fold_case=True) for part in parts)
    return [one for one in dict.fromkeys(found) if one]
