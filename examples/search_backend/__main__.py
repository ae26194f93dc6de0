"""A search backend that asks Requery: ``python -m examples.search_backend "steele stake"``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from examples.search_backend.catalogue import CATALOGUE, Index, read
from examples.search_backend.fusion import fuse, weight
from service.client import Answer, Rejected, Requery

SHOWN = 10
NEW = 5
"""How many of what only the rewrites find is shown, beyond the first ten."""


def found(index: Index, query: str, answer: Answer) -> list[str]:
    """Ids of what the query and its rewrites find together, best first."""
    rankings = [index.search(query), *(index.search(one.text) for one in answer.rewrites)]
    return fuse(rankings, [1.0, *(weight(one) for one in answer.rewrites)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Search, with and without rewrites; the exit status."""
    parser = argparse.ArgumentParser(prog="search_backend", description=__doc__.partition(":")[0])
    parser.add_argument("query", help="what the shopper types")
    url = os.environ.get("REQUERY_URL", "http://localhost:8000")
    parser.add_argument("--url", default=url, help="of Requery [REQUERY_URL]")
    # A search page has less to spare: this is for a first look, on a CPU.
    parser.add_argument("--deadline-ms", type=int, default=3000, help="what rewrites may take")
    parser.add_argument("--max-rewrites", type=int, default=3, help="most rewrites")
    parser.add_argument("--catalogue", type=Path, default=CATALOGUE, help="CSV file of products")
    given = parser.parse_args(arguments)
    index = Index(read(given.catalogue))
    key = os.environ.get("REQUERY_KEY")
    with Requery(given.url, api_key=key, deadline_ms=given.deadline_ms) as requery:
        try:
            answer = requery.rewrite(given.query, max_rewrites=given.max_rewrites)
        except Rejected as error:
            print(f"Requery does not take this call: {error}", file=sys.stderr)
            return 1
    plain = index.search(given.query)
    _show(index, f"{given.query}: {len(plain)} products", plain, plain)
    if not answer.rewrites:
        why = answer.reason or "no good ones"
        print(f"\nNo rewrites ({answer.status}: {why}); the search is as it was.")
        return 0
    rewrites = ", ".join(f"{one.text} ({one.relevance:.2f})" for one in answer.rewrites)
    fused = found(index, given.query, answer)
    print(f"\nRewrites: {rewrites}\n")
    _show(index, f"with rewrites: {len(fused)} products, + is new", fused, plain)
    return 0


def _show(index: Index, title: str, ranking: Sequence[str], plain: Sequence[str]) -> None:
    print(title)
    ranked = list(enumerate(ranking, start=1))
    new = [(rank, name) for rank, name in ranked[SHOWN:] if name not in plain]
    for rank, name in ranked[:SHOWN] + new[:NEW]:
        mark = " " if name in plain else "+"
        print(f"{rank:3} {mark} {index.products[name].title}")


if __name__ == "__main__":
    sys.exit(main())
