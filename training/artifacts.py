"""Files that a version needs beside its weights: protected brands and the corrector's words."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from service.engine.spelling import write_pairs, write_words
from training.data.brands import brands
from training.data.dataset import split
from training.data.pairs import World
from training.data.schema import Tables
from training.data.shops import english_words, read_brands, read_titles
from training.evaluation.baselines import spelling_pairs, spelling_words
from training.recipe import Recipe

MOST_PAIRS = 60_000
"""Pairs of words that a version carries, the commonest: a file holds 1 MiB."""


@dataclass(frozen=True, slots=True)
class Language:
    """What a version for all departments knows beside one catalogue.

    Attributes:
        titles: of other shops, normalised.
        brands: beside those that the catalogue shows.
        words: common words with their frequencies.
    """

    titles: Sequence[str] = ()
    brands: Sequence[str] = ()
    words: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Language:
        """That of the data source ``general``.

        Raises:
            DataError: a file of the data folder is missing.
        """
        return cls(read_titles(folder), read_brands(folder), english_words())


def write_artifacts(
    recipe: Recipe, tables: Tables, folder: Path, language: Language | None = None
) -> None:
    """Write the files named by the recipe's filter and corrector into a version's folder.

    Raises:
        DataError: a part of the data is empty.
        OSError: the folder cannot be written.
    """
    language = language or Language()
    if recipe.filter.brands_file is not None:
        names = {*brands(tables.catalogue["title"].to_list()), *language.brands}
        text = "".join(f"{name}\n" for name in sorted(names))
        (folder / recipe.filter.brands_file).write_text(text, encoding="utf-8")
    if recipe.spelling is not None:
        world = World(tables)
        parts = split(world)
        words = spelling_words(world, parts, language.titles)
        words = _with_common(words, language.words)
        write_words(words, folder / recipe.spelling.words_file)
        if recipe.spelling.pairs_file is not None:
            pairs = spelling_pairs(world, parts, words, language.titles)
            write_pairs(
                dict(Counter(pairs).most_common(MOST_PAIRS)), folder / recipe.spelling.pairs_file
            )


def _with_common(words: Mapping[str, int], common: Mapping[str, int]) -> dict[str, int]:
    """``words`` and common ones, which together count as much as all of ``words``."""
    share = sum(words.values()) / max(1, sum(common.values()))
    every = dict.fromkeys([*words, *common])
    return {
        word: words.get(word, 0) + (math.ceil(common[word] * share) if word in common else 0)
        for word in every
    }
