"""Files that a version needs beside its weights: protected brands and the corrector's words."""

from __future__ import annotations

from pathlib import Path

from service.engine.spelling import write_pairs, write_words
from training.data.brands import brands
from training.data.dataset import split
from training.data.pairs import World
from training.data.schema import Tables
from training.evaluation.baselines import spelling_pairs, spelling_words
from training.recipe import Recipe


def write_artifacts(recipe: Recipe, tables: Tables, folder: Path) -> None:
    """Write the files named by the recipe's filter and corrector into a version's folder.

    Raises:
        DataError: a part of the data is empty.
        OSError: the folder cannot be written.
    """
    if recipe.filter.brands_file is not None:
        names = brands(tables.catalogue["title"].to_list())
        (folder / recipe.filter.brands_file).write_text("\n".join(names) + "\n", encoding="utf-8")
    if recipe.spelling is not None:
        world = World(tables)
        parts = split(world)
        words = spelling_words(world, parts)
        write_words(words, folder / recipe.spelling.words_file)
        if recipe.spelling.pairs_file is not None:
            write_pairs(spelling_pairs(world, parts, words), folder / recipe.spelling.pairs_file)
