"""A shop's words, pairs of words and brands, beside those of the version that it starts from."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

from model_store.english import is_common
from model_store.manifest import Manifest, SpellingSpec
from service.engine.spelling import MAX_FILE_BYTES, Corrector, read_counts, write_pairs, write_words
from training.adapt.catalogue import Catalogue
from training.artifacts import MOST_PAIRS
from training.data.brands import brands

WORDS, PAIRS, BRANDS, SYNONYMS = "words.txt", "pairs.txt", "brands.txt", "synonyms.txt"
"""Files of an adapted version."""

_Key = TypeVar("_Key", str, tuple[str, str])

_TOKEN = re.compile(r"[^\W\d_]+|[^\w\s]")
_ALONE = re.compile(r"(?<![^\W_])[^\W\d_]+(?![^\W_])")
_READ = 400
"""Characters of a title that pairs are counted in."""
_MOST_COUNTED = 2_000_000
"""Different pairs from which the rarest are forgotten, so that memory is bounded."""
_MOST_ASKED = 20
"""Titles that a query counts for at most."""
_LONGEST_BRAND = 4
_SHOP_SHARE = 2
"""The shop's words together count so many times as those of the version before."""


@dataclass(frozen=True, slots=True)
class Language:
    """What a version knows of a shop's language.

    Attributes:
        words: word -> how often it comes.
        pairs: words that follow each other -> how often they do.
        brands: names that must survive in rewrites.
        shop_words: number of words that the shop's titles add.
        shop_brands: brands of the shop itself.
    """

    words: Mapping[str, int]
    pairs: Mapping[tuple[str, str], int]
    brands: frozenset[str]
    shop_words: int
    shop_brands: frozenset[str]

    def write(self, folder: Path) -> None:
        """Write :data:`WORDS`, :data:`PAIRS` and :data:`BRANDS` into a version's folder."""
        write_words(self.words, folder / WORDS)
        write_pairs(self.pairs, folder / PAIRS)
        text = "".join(f"{name}\n" for name in sorted(self.brands))
        (folder / BRANDS).write_text(text, encoding="utf-8")

    def corrector(self, spec: SpellingSpec) -> Corrector:
        """The corrector that the version will have."""
        return Corrector(self.words, spec.max_edits, self.pairs)


def learn_language(
    catalogue: Catalogue, manifest: Manifest, folder: Path, searches: Mapping[str, int]
) -> Language:
    """The language of a shop and of the version that it starts from.

    Args:
        catalogue: the shop's products.
        manifest: of the version before.
        folder: of the version before, its files checked.
        searches: queries and how often each was asked; those of known words show which follow each
            other.

    Raises:
        InvalidVersion: a file of the version before cannot be read.
    """
    least = _least(len(catalogue))
    shop = _words(catalogue, least)
    counted = _pairs(catalogue, shop)
    for query, asked in searches.items():
        tokens = _TOKEN.findall(query)
        if all(token in shop for token in tokens):
            counted.update(dict.fromkeys(pairwise(tokens), min(asked, _MOST_ASKED)))
    pairs = {pair: n for pair, n in counted.items() if n >= min(least, 3)}
    general: Mapping[str, int] = {}
    general_pairs: Mapping[tuple[str, str], int] = {}
    if (spec := manifest.spelling) is not None:
        general = {one[0]: n for one, n in read_counts(folder / spec.words_file, 1).items()}
        if spec.pairs_file is not None:
            read = read_counts(folder / spec.pairs_file, 2)
            general_pairs = {(left, right): n for (left, right), n in read.items()}
    own = _brands(catalogue)
    before = version_brands(manifest, folder)
    return Language(
        words=_fitting(_joined(shop, general)),
        pairs=_fitting(
            dict(Counter(_joined(pairs, general_pairs)).most_common(MOST_PAIRS)),
        ),
        brands=frozenset(own.union(before)),
        shop_words=sum(word not in general for word in shop),
        shop_brands=frozenset(own),
    )


def version_brands(manifest: Manifest, folder: Path) -> list[str]:
    """Brands of a version; none if it has no file of them."""
    name = manifest.filter.brands_file
    return [] if name is None else (folder / name).read_text(encoding="utf-8").splitlines()


def _least(products: int) -> int:
    """Times that a word comes from which it is no slip: in a small shop each one counts."""
    return 1 if products < 1000 else 2 if products < 10_000 else 4


def _words(catalogue: Catalogue, least: int) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for title in catalogue.titles.values():
        counts.update(_ALONE.findall(title))
    for brand, (products, _) in catalogue.brands.items():
        for word in _ALONE.findall(brand):
            counts[word] = max(counts[word], products)
    kept = {w: n for w, n in counts.items() if n >= least or is_common(w)}
    # Descriptions tell which words exist, and not what is sold.
    for word, n in catalogue.described.items():
        if n >= 5 and word not in kept:
            kept[word] = 1
    return kept


def _pairs(catalogue: Catalogue, words: Mapping[str, int]) -> Counter[tuple[str, str]]:
    counts: Counter[tuple[str, str]] = Counter()
    for title in catalogue.titles.values():
        tokens = _TOKEN.findall(title[:_READ])
        counts.update(pair for pair in pairwise(tokens) if pair[0] in words and pair[1] in words)
        if len(counts) > _MOST_COUNTED:
            counts = Counter({pair: n for pair, n in counts.items() if n > 1})
    return counts


def _brands(catalogue: Catalogue) -> set[str]:
    """Brands by their column, else by form (:func:`training.data.brands.brands`).

    By form alone "sugar free" would be one, so at least one word must not be common English.
    """
    if not catalogue.brands:
        guessed = brands(catalogue.titles.values())
        return {name for name in guessed if not all(is_common(w) for w in _ALONE.findall(name))}
    found = set()
    for name, (products, named) in catalogue.brands.items():
        if len(name.split()) > _LONGEST_BRAND or 2 * named < products:
            continue
        # A common word ("simply") is a brand only if many products have it.
        if products >= 5 or not is_common(name):
            found.add(name)
    return found


def _joined(shop: Mapping[_Key, int], general: Mapping[_Key, int]) -> dict[_Key, int]:
    """Both, the shop's multiplied so that together they count :data:`_SHOP_SHARE` times more."""
    total = sum(shop.values())
    factor = max(1, round(_SHOP_SHARE * sum(general.values()) / total)) if total else 1
    joined = dict(general)
    for key, count in shop.items():
        joined[key] = joined.get(key, 0) + count * factor
    return joined


def _fitting(counts: Mapping[_Key, int]) -> dict[_Key, int]:
    """The commonest whose lines fit into a file of a version."""
    kept: dict[_Key, int] = {}
    room = MAX_FILE_BYTES
    for key, count in sorted(counts.items(), key=lambda item: -item[1]):
        room -= len(f"{_as_text(key)} {count}\n".encode())
        if room < 0:
            break
        kept[key] = count
    return kept


def _as_text(key: str | tuple[str, str]) -> str:
    return key if isinstance(key, str) else " ".join(key)
