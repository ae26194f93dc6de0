"""The files that a recipe lets travel with a version."""

from __future__ import annotations

from pathlib import Path

import pytest

import training
from model_store.manifest import FilterSpec, SpellingSpec
from service.engine.spelling import Corrector
from tests.unit.training.worlds import make_tables, shop_tables
from training.artifacts import Language, write_artifacts
from training.recipe import Recipe, load_recipe


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe(Path(training.__file__).parent / "recipes" / "sft-2.yaml")


def test_the_brands_and_words_of_a_catalogue(recipe: Recipe, tmp_path: Path) -> None:
    write_artifacts(recipe, shop_tables(), tmp_path)
    words = dict(line.split() for line in (tmp_path / "words.txt").read_text().splitlines())
    # "oak" is in the titles of eight things; what was typed in its place is no word.
    assert int(words["oak"]) >= 8
    assert "hammer" in words
    lines = (tmp_path / "pairs.txt").read_text().splitlines()
    pairs = {tuple(line.split()[:2]) for line in lines}
    assert ("oak", "hammer") in pairs
    assert {word for pair in pairs for word in pair} <= words.keys()
    assert recipe.spelling is not None
    corrector = Corrector.of(recipe.spelling, tmp_path)
    assert corrector("oka hamer") == "oak hammer"
    assert (tmp_path / "brands.txt").is_file()


def test_rare_words_are_not_known(recipe: Recipe, tmp_path: Path) -> None:
    titles = {f"p{i}": "oak ladder" for i in range(40)} | {f"q{i}": "oka shelf" for i in range(4)}
    grades = {f"ladder {i}": {"p0": 3.0} for i in range(40)}
    write_artifacts(recipe, make_tables(titles, grades), tmp_path)
    words = dict(line.split() for line in (tmp_path / "words.txt").read_text().splitlines())
    assert words.keys() == {"oak", "ladder"}
    assert words["oak"] == "40"


def test_only_what_the_recipe_names_is_written(recipe: Recipe, tmp_path: Path) -> None:
    plain = recipe.model_copy(update={"filter": FilterSpec(), "spelling": None})
    write_artifacts(plain, shop_tables(), tmp_path)
    assert list(tmp_path.iterdir()) == []
    words = plain.model_copy(update={"spelling": SpellingSpec(words_file="w.txt")})
    write_artifacts(words, shop_tables(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["w.txt"]


def test_a_version_for_all_departments_knows_more(recipe: Recipe, tmp_path: Path) -> None:
    language = Language(
        ["oat milk carton"] * 6, ["oatly"], {"milk": 900, "couch": 90, "settee": 10}
    )
    write_artifacts(recipe, shop_tables(), tmp_path, language)
    words = dict(line.split() for line in (tmp_path / "words.txt").read_text().splitlines())
    assert {"oak", "oat", "couch", "settee"} <= words.keys()
    assert int(words["milk"]) > int(words["couch"]) > int(words["settee"]) > 0
    assert "oat milk 6" in (tmp_path / "pairs.txt").read_text().splitlines()
    assert "oatly" in (tmp_path / "brands.txt").read_text().splitlines()
