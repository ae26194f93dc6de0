"""Queries with known products: made from titles, or a shop's own clicks and grades.

A made query starts from words of a title as shoppers ask ("oatwell oat milk"); the products that
hold all of them are what it means. It is typed as it is, with a slip, or in other words for the
same thing (right pairs of :mod:`training.data.curated_pairs`), so that there is something to find.
Everything measured on made queries is simulated.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from model_store.text import normalise
from training.adapt.catalogue import Catalogue
from training.data.curated_pairs import CURATED, read_curated
from training.data.folds import DEVELOPMENT, fold_of
from training.data.noise import misspell
from training.data.pairs import is_trivial
from training.data.search import DEPTH, SearchIndex

MISSPELT, CLEAN, OTHER_WORDS, LOG = "misspelt", "clean", "other words", "searches"
SHARES: Mapping[str, float] = {MISSPELT: 0.35, CLEAN: 0.35, OTHER_WORDS: 0.3}
"""Shares of the kinds among made queries, not those of real traffic."""
_HEAD = re.compile(r"[,;:|/(\[]|\s[-\u2013]\s|\s\d")
_WORD = re.compile(r"[^\W\d_][^\W_]*(?:['-][^\W_]+)*")
_SMALL = frozenset(
    ("a", "and", "by", "for", "from", "in", "la", "no", "of", "on", "or", "the", "to", "with")
)
_SAME_NEED = frozenset(("synonym", "product_type", "abbreviation", "compound"))


@dataclass(frozen=True, slots=True)
class KnownQuery:
    """A query whose products are known.

    Attributes:
        text: in normal form.
        relevant: ids of its products.
        kind: how it was made, or :data:`LOG`.
        meant: the words that its products hold; of the shop's own queries the query itself.
    """

    text: str
    relevant: frozenset[str]
    kind: str
    meant: str


def depth_of(products: int) -> int:
    """Results that a search is measured by: 100, fewer in a small shop, where 100 is nearly all."""
    return max(10, min(DEPTH, products // 50))


def made_queries(
    catalogue: Catalogue, index: SearchIndex, count: int, seed: int = 0
) -> list[KnownQuery]:
    """Up to ``count`` made queries, of the kinds by :data:`SHARES`, reproducibly.

    Args:
        catalogue: the shop's products.
        index: over its titles.
        count: of queries; fewer if the shop gives fewer.
        seed: of all choices.
    """
    rng = random.Random(seed)
    depth = depth_of(len(catalogue))
    found: dict[str, KnownQuery] = {}

    def take(text: str, meant: str, kind: str) -> bool:
        text, relevant = normalise(text, fold_case=True), index.holding(meant, depth + 1)
        # More products than a search shows cannot all be found, whatever the query.
        if text in found or not 0 < len(relevant) <= depth:
            return False
        found[text] = KnownQuery(text, frozenset(relevant), kind, meant)
        return True

    wanted = {kind: round(count * share) for kind, share in SHARES.items()}
    others = list(_other_words(index, depth))
    rng.shuffle(others)
    made = 0
    for text, meant in others:
        if made == wanted[OTHER_WORDS]:
            break
        made += take(text, meant, OTHER_WORDS)
    # What one kind lacks, misspelt ones make up for.
    wanted[MISSPELT] += wanted[OTHER_WORDS] - made
    titles = sorted(catalogue.titles)
    for kind in (MISSPELT, CLEAN):
        made = 0
        for _ in range(20 * wanted[kind]):
            if made == wanted[kind]:
                break
            meant = _phrase(catalogue, rng.choice(titles), rng)
            text = misspell(meant, rng) if kind == MISSPELT else meant
            if meant and (kind == CLEAN or not is_trivial(text, meant)):
                made += take(text, meant, kind)
    return [found[text] for text in sorted(found)]


def _phrase(catalogue: Catalogue, product: str, rng: random.Random) -> str:
    """Words of a title that a shopper could ask for; ``""`` if it has none.

    Of "Oatwell Organic Oat Milk, 1 l" the last two words before the comma name the product. One
    before them may come with them, or the brand.
    """
    title = catalogue.titles[product]
    head = _HEAD.split(title, maxsplit=1)[0]
    words = [w for w in _WORD.findall(head) if w not in _SMALL and len(w) > 1]
    if not words:
        return ""
    kind = words[-rng.choice((1, 2, 2, 2)) :]
    before = words[: -len(kind)]
    if before and rng.random() < 0.5:
        # The first word is mostly the brand's, others say more of the product.
        kind = [before[0] if rng.random() < 0.5 else rng.choice(before), *kind]
    return " ".join(kind)


def _other_words(index: SearchIndex, depth: int) -> Iterator[tuple[str, str]]:
    """(query, the same need in words that titles hold), where the query's own words find less."""
    for one in read_curated(CURATED):
        # The packaged versions have learnt the others by heart.
        if fold_of(one.corrected) != DEVELOPMENT:
            continue
        for rewrite in one.right:
            if rewrite.kind not in _SAME_NEED or is_trivial(one.corrected, rewrite.text):
                continue
            for text, meant in ((one.query, rewrite.text), (rewrite.text, one.corrected)):
                holding = index.matches_all(meant)
                if 0 < holding <= depth and index.matches_all(text) < holding:
                    yield text, meant


def known_words(queries: Sequence[KnownQuery]) -> dict[str, int]:
    """How many queries there are of each kind."""
    return dict(Counter(one.kind for one in queries))
