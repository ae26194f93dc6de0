"""An index of a shop's titles: which rewrites would find nothing, or nothing that is new.

It knows which words stand in which title, and no ranks. A text *finds* the products whose titles
have all of its words (:func:`service.filtering.words.words`, small words such as "for" left out):
what a backend that demands all words finds, and the head of what BM25 ranks. Both rules err towards
keeping a rewrite:

* ``no_results``: no title has all of its words; of four to eight words one may miss, because such a
  backend ranks what has most of them. Words that negate may always miss.
* ``no_gain``: it finds some products, and the query finds each of them. A query with a word that is
  in no title (a misspelled one) finds nothing, so its corrections always gain.

Text that is written without spaces between words is not judged, nor are rewrites of more words.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from functools import lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from model_store.errors import InvalidVersion
from model_store.files import write_atomically
from model_store.harmless import require_safetensors
from model_store.manifest import CatalogueSpec
from service.filtering.candidates import Verdict
from service.filtering.words import SMALL_WORDS, words

INDEX_FILE = "catalogue.index"
"""Usual name of the file in a version."""
MAX_PRODUCTS = 5_000_000
BYTES_PER_PRODUCT = 100
"""Most on disk, beside :data:`_FIXED_BYTES`."""

_FORMAT = "requery-catalogue-1"
_FIXED_BYTES = 2**16
_WORDS_PER_TITLE = (64, 48, 32, 24, 16, 8)
"""Distinct words of a title that are kept: the first number with which the file is small enough."""
_DENSE = 64
"""A word in one of so many titles or more has a bit for each product."""
_NEGATIONS = frozenset(("no", "non", "not", "without"))
_ALL_NEEDED = 3
"""Up to so many words all must be in a title."""
_MOST_WORDS = 8
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
"""Thai, Lao, Burmese, Khmer, Japanese and Chinese."""
_ARRAYS = ("terms", "counts", "postings")
_MAX_WIDTH = 4
"""Bytes of the largest distance between two products."""

_Array = NDArray[np.unsignedinteger]


class TermIndex:
    """Which products have which words in their titles.

    Args:
        products: how many there are.
        terms: keys of the words, rising; uint64, shape ``(words,)``.
        counts: products of each word, at least 1; uint32, shape ``(words,)``.
        postings: product numbers from 0, word by word, rising within each; uint32, shape
            ``(sum of counts,)``.
    """

    def __init__(self, products: int, terms: _Array, counts: _Array, postings: _Array) -> None:
        self.products = products
        self._terms = terms
        dense = counts * np.uint64(_DENSE) >= products
        self._row = np.cumsum(dense) - 1
        self._dense = dense
        rows = np.repeat(np.where(dense, self._row, -1), counts)
        bits = np.zeros((int(dense.sum()), -(-products // 8)), np.uint8)
        of_dense = rows >= 0
        placed = postings[of_dense]
        np.bitwise_or.at(bits, (rows[of_dense], placed >> 3), (1 << (placed & 7)).astype(np.uint8))
        self._bits = bits
        self._sparse = postings[~of_dense]
        self._ends = np.cumsum(np.where(dense, 0, counts))

    @classmethod
    def load(cls, path: Path, products: int | None = None) -> Self:
        """Read and check the file of a version.

        Args:
            path: written by :func:`build_term_index`.
            products: as the manifest says; ``None``: whatever the file says.

        Raises:
            InvalidVersion: the file is missing, damaged, too large, or of another catalogue.
        """
        try:
            return cls(*_read(path, products))
        except OSError as error:
            raise InvalidVersion(f"{path}: {error.strerror}") from error

    def count(self, text: str) -> int:
        """How many products ``text`` finds: their titles have all of its words."""
        rows = self._rows(_content(words(text)))
        return 0 if rows is None else self._found(rows)

    def judging(self, query: Sequence[str]) -> Callable[[Sequence[str]], Verdict]:
        """Judges rewrites of a query: ``accepted``, ``no_results`` or ``no_gain``.

        Args:
            query: its folded words (:func:`service.filtering.words.words`); so are the rewrite's.
        """
        asked = self._rows(_content(query))

        def judge(rewrite: Sequence[str]) -> Verdict:
            said = [word for word in _content(rewrite) if word not in _NEGATIONS]
            if not 0 < len(said) <= _MOST_WORDS or any(map(_UNSPACED.search, said)):
                return Verdict.ACCEPTED
            rows = self._rows(said)
            found = 0 if rows is None else self._found(rows)
            if not found:
                return Verdict.ACCEPTED if self._nearly(said) else Verdict.NO_RESULTS
            if asked and rows and self._found([*{*rows, *asked}]) == found:
                return Verdict.NO_GAIN
            return Verdict.ACCEPTED

        return judge

    def _nearly(self, said: Sequence[str]) -> bool:
        """Whether a product has all words of a long text but one."""
        if len(said) <= _ALL_NEEDED:
            return False
        rest = ([*said[:i], *said[i + 1 :]] for i in range(len(said)))
        return any(rows and self._found(rows) for rows in map(self._rows, rest))

    def _rows(self, said: Sequence[str]) -> list[int] | None:
        """Places of words among the terms; ``None`` if one is in no title."""
        keys = np.fromiter(map(_key, said), np.uint64, len(said))
        rows = np.searchsorted(self._terms, keys)
        if (len(rows) and rows.max() == len(self._terms)) or (self._terms[rows] != keys).any():
            return None
        found: list[int] = rows.tolist()
        return found

    def _found(self, rows: Sequence[int]) -> int:
        """How many products have all words; all of them for no word."""
        bits: NDArray[np.uint8] | None = None
        lists = []
        for row in rows:
            if self._dense[row]:
                more = self._bits[self._row[row]]
                bits = more if bits is None else bits & more
            else:
                start = self._ends[row - 1] if row else 0
                lists.append(self._sparse[start : self._ends[row]])
        if not lists:
            return self.products if bits is None else int(np.bitwise_count(bits).sum())
        lists.sort(key=len)
        left = lists[0]
        for other in lists[1:]:
            places = np.searchsorted(other, left)
            places[places == len(other)] = 0
            left = left[other[places] == left]
            if not len(left):
                return 0
        if bits is not None:
            left = left[(bits[left >> 3] >> (left & 7).astype(np.uint8)) & 1 == 1]
        return len(left)


def build_term_index(titles: Iterable[str], path: Path, *, made_at: datetime) -> CatalogueSpec:
    """Write the index of a catalogue, and return what the manifest says of it.

    Memory is some 20 bytes for each word of each title. Only the first 64 distinct words of a title
    count, or fewer if the file would have more than 64 KiB and 100 bytes a product.

    Args:
        titles: one for each product: the text that the shop's search looks through, as it is.
        path: the file, in the version's folder; replaced if it exists.
        made_at: when the catalogue was taken from the shop, with a time zone.

    Raises:
        InvalidVersion: no title has a word, or there are more than :data:`MAX_PRODUCTS`.
        CannotWrite: the disk is full or the folder cannot be written.
    """
    from safetensors.numpy import save

    numbers: dict[str, int] = {}
    of_term, of_product, place = array("I"), array("I"), array("B")
    products = 0
    for title in titles:
        if products == MAX_PRODUCTS:
            raise InvalidVersion(f"the catalogue has more than {MAX_PRODUCTS} products")
        for i, word in enumerate(dict.fromkeys(words(title))):
            if i == _WORDS_PER_TITLE[0]:
                break
            of_term.append(numbers.setdefault(word, len(numbers)))
            of_product.append(products)
            place.append(i)
        products += 1
    if not numbers:
        raise InvalidVersion("no title of the catalogue has a word: there is nothing to index")
    keys = np.fromiter(map(_key, numbers), np.uint64, len(numbers))
    term = keys[np.frombuffer(of_term, np.uint32)]
    product = np.frombuffer(of_product, np.uint32)
    places = np.frombuffer(place, np.uint8)
    data = b""
    for most in _WORDS_PER_TITLE:
        kept = places < most
        arrays = _encoded(term[kept], product[kept])
        data = save(arrays, {"format": _FORMAT, "products": str(products)})
        if len(data) <= _most_bytes(products):
            break
    write_atomically(path, data)
    return CatalogueSpec(index_file=path.name, products=products, made_at=made_at)


def _content(said: Iterable[str]) -> list[str]:
    return [word for word in dict.fromkeys(said) if word not in SMALL_WORDS]


@lru_cache(maxsize=8192)
def _key(word: str) -> int:
    """64 bits for a word: smaller than the word, and of 100,000 words no two are likely alike."""
    return int.from_bytes(blake2b(word.encode(errors="replace"), digest_size=8).digest(), "little")


def _most_bytes(products: int) -> int:
    return _FIXED_BYTES + BYTES_PER_PRODUCT * products


def _encoded(term: _Array, product: _Array) -> dict[str, _Array]:
    """The arrays of the file: distances between a word's products, 7 bits in each byte."""
    order = np.lexsort((product, term))
    term, product = term[order], product[order].astype(np.int64)
    terms, starts, counts = np.unique(term, return_index=True, return_counts=True)
    gaps = np.diff(product, prepend=-1)
    gaps[starts] = product[starts] + 1
    width = np.ones(len(gaps), np.int64)
    for k in range(1, _MAX_WIDTH):
        width += gaps >= 1 << 7 * k
    begin = np.cumsum(width) - width
    coded = np.zeros(int(width.sum()), np.uint8)
    for k in range(_MAX_WIDTH):
        has = width > k
        more = np.where(width[has] > k + 1, 0x80, 0)
        coded[begin[has] + k] = (gaps[has] >> 7 * k & 0x7F) | more
    return {"terms": terms, "counts": counts.astype(np.uint32), "postings": coded}


def _read(path: Path, expected: int | None) -> tuple[int, _Array, _Array, _Array]:
    from safetensors import safe_open

    def require(holds: object, what: str) -> None:
        if not holds:
            raise InvalidVersion(f"{path}: {what}; run 'requery adapt' again")

    size = path.stat().st_size
    require(size <= _most_bytes(MAX_PRODUCTS), "is too large for an index of a catalogue")
    require_safetensors(path)
    with safe_open(path, framework="numpy") as file:
        about = file.metadata() or {}
        require(about.get("format") == _FORMAT, "is no catalogue index that this program reads")
        said = about.get("products", "")
        require(re.fullmatch(r"[1-9][0-9]{0,6}", said), "does not say how many products it has")
        products = int(said)
        require(
            products == expected or expected is None,
            f"has {products} products, and the manifest says {expected}",
        )
        require(size <= _most_bytes(products), f"is too large for {products} products")
        require(
            set(file.keys()) == {"terms", "counts", "postings"}, "has other arrays than it should"
        )
        terms, counts, coded = (file.get_tensor(name) for name in ("terms", "counts", "postings"))
    kinds = [(one.dtype, one.ndim) for one in (terms, counts, coded)]
    require(
        kinds == [(np.uint64, 1), (np.uint32, 1), (np.uint8, 1)] and len(terms) == len(counts),
        "has arrays of another kind than it should",
    )
    require(len(terms) and (terms[1:] > terms[:-1]).all(), "its words are not in order")
    ends = np.flatnonzero(coded < 0x80)
    width = np.diff(ends, prepend=-1)
    total = int(counts.sum(dtype=np.uint64))
    whole = len(ends) == total and len(coded) and ends[-1] == len(coded) - 1
    require(whole and counts.min() > 0 and width.max() <= _MAX_WIDTH, "is cut short or damaged")
    gaps = np.zeros(total, np.int64)
    for k in range(_MAX_WIDTH):
        has = width > k
        gaps[has] |= (coded[(ends - width + 1)[has] + k] & 0x7F).astype(np.int64) << 7 * k
    last = np.cumsum(counts, dtype=np.int64) - 1
    summed = np.cumsum(gaps)
    before = np.concatenate(([0], summed[last[:-1]]))
    numbers = summed - np.repeat(before, counts) - 1
    require(gaps.min() > 0 and numbers[last].max() < products, "names products that do not exist")
    return products, terms, counts, numbers.astype(np.uint32)
