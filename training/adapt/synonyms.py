"""Other words for a shop's terms: its own list, the project's (``terms.txt``), the curated pairs.

All are kept only if the shop's search confirms them: what they lead to must be in titles, and find
more than the term itself. What is served of them is tagged by the model first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from training.adapt.evidence import read_synonyms
from training.data.curated_pairs import CURATED, CuratedQuery, read_curated
from training.data.folds import DEVELOPMENT, fold_of
from training.data.pairs import is_trivial
from training.data.search import SearchIndex, stems

TERMS = Path(__file__).parent / "terms.txt"
"""The project's own list, in Solr's format."""
_MOST = 3
"""Other terms for one term."""
_LONGEST = 4
"""Words of a term."""
_BOTH_WAYS = frozenset(("synonym", "abbreviation", "compound"))
_ONE_WAY = frozenset(("product_type",))


def shop_synonyms(index: SearchIndex, given: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Term -> other terms that find more in the shop; the shop's own list goes first."""
    found: dict[str, list[str]] = {}
    lists = (given, read_synonyms(TERMS))
    pairs = ((term, other) for one in lists for term, others in one.items() for other in others)
    for term, other in (*pairs, *curated_terms(read_curated(CURATED))):
        others = found.setdefault(term, [])
        if len(others) < _MOST and other not in others and _helps(index, term, other):
            others.append(other)
    return {term: others for term, others in found.items() if others}


def without_development(terms: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Those that no curated pair of the development fold teaches, to measure what the others do."""
    kept = [one for one in read_curated(CURATED) if fold_of(one.corrected) == DEVELOPMENT]
    taught = set(curated_terms(kept))
    left = {t: [o for o in others if (t, o) not in taught] for t, others in terms.items()}
    return {term: others for term, others in left.items() if others}


def curated_terms(pairs: Sequence[CuratedQuery]) -> Iterator[tuple[str, str]]:
    """(term, other term) of right pairs, in correct spelling and without numbers."""
    for one in pairs:
        term = one.corrected
        for rewrite in one.right:
            other = rewrite.text
            if rewrite.kind not in _BOTH_WAYS | _ONE_WAY or not _plain(term) or not _plain(other):
                continue
            if is_trivial(term, other) and rewrite.kind != "compound":
                continue
            yield term, other
            if rewrite.kind in _BOTH_WAYS:
                yield other, term


def _plain(term: str) -> bool:
    return len(term.split()) <= _LONGEST and not any(map(str.isdigit, term))


def _helps(index: SearchIndex, term: str, other: str) -> bool:
    left, right = set(stems(term)), set(stems(other))
    # A term within the other one only adds or drops words.
    if not left or not right or left <= right or right <= left:
        return False
    return index.matches_all(other) > index.matches_all(term)
