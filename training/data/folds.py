"""Which queries may be trained on: folds that keep spelling variants together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from rapidfuzz import fuzz, process

from training.data.search import stems

FOLDS = 10
HELD_OUT = 0
"""Reported on; no stage of any recipe sees it, and nothing is chosen by it."""
DEVELOPMENT = 1
"""For choosing settings; not trained on either."""

VARIANT_SIMILARITY = 92.0
"""Normalised indel similarity (0-100) from which two queries count as spelling variants."""


def fold_of(canonical: str) -> int:
    """Fold 0..9 of a query: MD5 of its corrected spelling, lower case, modulo 10."""
    digest = hashlib.md5(canonical.lower().encode(), usedforsecurity=False).hexdigest()
    return int(digest, 16) % FOLDS


def compact(text: str) -> str:
    """Order-free stem form without spaces or punctuation: equal for trivial variants."""
    return "".join(sorted(stems(text)))


def variants(queries: Sequence[str], protected: Iterable[str]) -> set[str]:
    """Those of ``queries`` that are a spelling variant of any of ``protected``.

    A fold by corrected spelling misses misspellings that the correction table does not list;
    this finds them by form: equal stems in any order, or nearly equal letters.
    """
    protected = list(dict.fromkeys(protected))
    if not protected or not queries:
        return set()
    forms = {compact(p) for p in protected}
    found = {q for q in queries if compact(q) in forms}
    rest = [q for q in queries if q not in found]
    letters = ["".join(c for c in p.lower() if c.isalnum()) for p in protected]
    for start in range(0, len(rest), 1024):
        block = rest[start : start + 1024]
        scores = process.cdist(
            ["".join(c for c in q.lower() if c.isalnum()) for q in block],
            letters,
            scorer=fuzz.ratio,
            score_cutoff=VARIANT_SIMILARITY,
            dtype=np.uint8,
        )
        found.update(q for q, hit in zip(block, scores.max(axis=1) > 0, strict=True) if hit)
    return found
