"""What other shops' data says about language: titles, misspellings, terms that go together.

Source: files of other people, in the data folder (docs/training.md says where they are from):

* ``shops/<name>/products.tsv``: tab-separated, with a column ``title``, some with ``brand``;
* ``spelling/pairs.tsv``: ``wrong``, ``right``, ``source``;
* ``term_pairs/amazon_us.tsv``: ``query_term``, ``title_term`` and two similarities;
* ``lexicon/wordnet_product_synsets.tsv``: ``domain``, ``lemmas`` (with ``|`` between them).
"""

from __future__ import annotations

import csv
import html
import re
from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

from model_store.english import frequencies, is_common
from model_store.text import normalise
from training.errors import DataError

SHOPS: Mapping[str, int] = {
    "amazon_india": 20_000,
    "crowdflower": 20_000,
    "instacart": 25_000,
    "matching": 20_000,
    "retrotech": 10_000,
}
"""Shop -> titles to read; most of retrotech's are of music and films."""
_WITH_BRANDS = ("matching", "retrotech")
_BRAND = 5
"""Titles of a brand from which it is known."""
_CHILDREN = "birkbeck"
"""Children's handwriting, whose slips are rarer at a keyboard."""
_RARE = 8
_SOLD = frozenset({"artifact", "food", "substance"})
_NAMED = 3
"""Titles that hold a name from which it is one that shoppers may use."""
_MOST_NAMES = 5
_PHRASE_WORD = re.compile(r"[a-z0-9'-]+")
_SIMILAR = 0.87
"""Similarity from which terms of the machine-mined pairs are mostly synonyms."""


def read_titles(folder: Path) -> list[str]:
    """Titles of all shops, normalised, each once.

    Raises:
        DataError: a file is missing or has no titles.
    """
    found: dict[str, None] = {}
    for shop, most in SHOPS.items():
        path = folder / "shops" / shop / "products.tsv"
        titles = [row["title"] for row in _table(path, ("title",))]
        # Evenly from all parts of the file, which may be sorted by category.
        step = max(1, len(titles) // most)
        for title in titles[::step]:
            text = normalise(html.unescape(title), fold_case=True).removesuffix("...").strip()
            if text:
                found[text] = None
    return list(found)


def read_brands(folder: Path) -> list[str]:
    """Brands that shops name beside their titles, normalised and sorted.

    Titles mostly begin with the brand; those that do not are of a label or a publisher.

    Raises:
        DataError: a file is missing or has no brands.
    """
    titles: Counter[str] = Counter()
    leading: Counter[str] = Counter()
    for shop in _WITH_BRANDS:
        path = folder / "shops" / shop / "products.tsv"
        for row in _table(path, ("title", "brand")):
            brand, title = (
                normalise(html.unescape(row[c]).replace("\u00ae", ""), fold_case=True)
                for c in ("brand", "title")
            )
            titles[brand] += 1
            leading[brand] += title.startswith(f"{brand} ")
    return sorted(
        b for b, n in titles.items() if len(b) > 1 and n >= _BRAND and leading[b] >= n / 2
    )


@dataclass(frozen=True, slots=True)
class Slip:
    """A misspelling of a word, and how often it is taken."""

    wrong: str
    right: str
    weight: int


def read_slips(folder: Path) -> list[Slip]:
    """Misspellings of single words, in lower case.

    Raises:
        DataError: the file is missing or of another form.
    """
    found = []
    for row in _table(folder / "spelling" / "pairs.tsv", ("wrong", "right", "source")):
        wrong, right = row["wrong"].lower(), row["right"].lower()
        if wrong != right and wrong.isalpha() and right.isalpha() and wrong.isascii():
            found.append(Slip(wrong, right, 1 if row["source"] == _CHILDREN else _RARE))
    return found


def read_synonyms(folder: Path) -> list[tuple[str, str]]:
    """Terms of queries and of titles that two embedding models take for the same.

    Raises:
        DataError: the file is missing or of another form.
    """
    columns = ("query_term", "title_term", "mpnet", "minilm")
    found = []
    for row in _table(folder / "term_pairs" / "amazon_us.tsv", columns):
        # Not every row has the second similarity.
        similar = min(float(row["mpnet"] or 0), float(row["minilm"] or 0))
        pair = tuple(normalise(row[c], fold_case=True) for c in columns[:2])
        if similar >= _SIMILAR and pair[0] != pair[1]:
            found.append((pair[0], pair[1]))
    return found


def read_synsets(folder: Path, titles: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs of names that WordNet has for one thing that is sold, each in both orders.

    Titles must hold both names, and neither may be the name of several other things too.

    Raises:
        DataError: the file is missing or of another form.
    """
    synsets: list[tuple[str, list[str]]] = []
    for row in _table(folder / "lexicon" / "wordnet_product_synsets.tsv", ("domain", "lemmas")):
        lemmas = [normalise(lemma, fold_case=True) for lemma in row["lemmas"].split("|")]
        synsets.append((row["domain"], list(dict.fromkeys(lemmas))))
    senses = Counter(name for _, names in synsets for name in names)
    counts = _phrase_counts(titles, senses)
    found = []
    for domain, names in synsets:
        sold = [n for n in names if senses[n] <= 2 and counts[n] >= _NAMED and len(n) > 2]
        if domain in _SOLD and len(sold) <= _MOST_NAMES:
            found += list(permutations(sold, 2))
    return found


def _phrase_counts(titles: Sequence[str], wanted: Container[str]) -> Counter[str]:
    """How many titles hold each wanted phrase of up to three words, plurals too."""
    counts: Counter[str] = Counter()
    for title in titles:
        words = _PHRASE_WORD.findall(title)
        runs = {
            " ".join(words[i : i + size])
            for size in (1, 2, 3)
            for i in range(len(words) - size + 1)
        }
        runs |= {run[:-1] for run in runs if run.endswith("s")}
        counts.update(run for run in runs if run in wanted)
    return counts


def english_words() -> dict[str, int]:
    """Common English words with how often they come in a billion."""
    return {word: round(1e9 * share) for word, share in frequencies().items() if is_common(word)}


def title_words(titles: Sequence[str], least: int) -> dict[str, int]:
    """Words of letters that stand in at least ``least`` titles."""
    counts: Counter[str] = Counter()
    for title in titles:
        counts.update({w for w in title.replace(",", " ").split() if w.isalpha()})
    return {word: count for word, count in counts.items() if count >= least}


def _table(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    if not path.is_file():
        raise DataError(f"{path} not found; docs/training.md says where it is from")
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE)
        if missing := set(columns).difference(reader.fieldnames or ()):
            raise DataError(f"{path} has no column {', '.join(sorted(missing))}")
        for row in reader:
            yield {name: row[name] or "" for name in columns}
