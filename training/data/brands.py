"""Brands of a catalogue, found by form: words that titles begin with, and hold nowhere else.

They go into a version as ``brands.txt``; the service keeps a query's brand in its rewrites.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from model_store.text import normalise

MIN_TITLES = 15
"""A name must begin at least this many titles."""
MIN_LEADING = 0.75
"""Share of the titles holding a name that must begin with it."""
MIN_PAIR = 0.6
"""Share of a first word's titles that must go on with the same second word to make one name."""


def brands(titles: Iterable[str]) -> list[str]:
    """Brand names of one or two words, normalised and sorted."""
    rows = [normalise(t, fold_case=True).split() for t in titles]
    first = Counter(r[0] for r in rows if r)
    following: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        if len(row) > 1:
            following[row[0]][row[1]] += 1
    holding = Counter(word for r in rows for word in set(r))
    found: set[str] = set()
    for word, count in first.items():
        if count < MIN_TITLES or len(word) < 3 or any(c.isdigit() for c in word):
            continue
        second, together = max(following[word].items(), key=lambda item: item[1], default=("", 0))
        if together >= MIN_PAIR * count and second.isalpha() and len(second) > 2:
            found.add(f"{word} {second}")
        elif count >= MIN_LEADING * holding[word]:
            found.add(word)
    return sorted(found)
