from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

import training
from training.errors import RecipeError
from training.recipe import Recipe, load_recipe, recipe_digest

FOLDER = Path(training.__file__).parent / "recipes"
RECIPES = sorted(FOLDER.rglob("*.yaml"))


def document() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((FOLDER / "sft-1.yaml").read_text(encoding="utf-8"))
    return content


def write(folder: Path, content: object) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_shipped_recipe_is_valid(path: Path) -> None:
    recipe = load_recipe(path)
    assert recipe.stages[-1].kind != "sample", "what was sampled is never learnt"
    assert recipe.decoding.max_tokens <= 128


def test_there_are_recipes() -> None:
    assert len(RECIPES) >= 2
    assert len({load_recipe(path).name for path in RECIPES}) == len(RECIPES)


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"seeds": 3}, "seeds"),
        ({"name": "No Spaces"}, "name"),
        ({"data": {"source": "amazon"}}, "data.source"),
        ({"data": {"source": "tables", "noisy_pairs": -1}}, "data.noisy_pairs"),
        ({"stages": []}, "stages"),
        ({"stages": [{"kind": "ppo"}]}, "stages.0"),
        ({"stages": [{"kind": "sft", "tokens": 5, "optimiser": {}}]},
         "stages.0.sft.optimiser.learning_rate"),
        ({"stages": [{"kind": "sft", "tokens": 0, "optimiser": {"learning_rate": 1}}]},
         "stages.0.sft.tokens"),
        ({"stages": [{"kind": "sample", "queries": 5}]}, "stages"),
        ({"stages": [{"kind": "tags", "ridge": 0}]}, "stages.0.tags.ridge"),
        ({"adapter": {"rank": 0}}, "adapter.rank"),
        ({"decoding": {"temperatures": [3.0]}}, "decoding.temperatures.0"),
        ({"label_words": {"query": " a"}}, "label_words"),
        ({"label_words": dict.fromkeys(("query", "rewrite", "relevant", "irrelevant"), "")},
         "label_words"),
        ({"base": {"source": "x", "sha256": "short", "license": "y"}}, "base.sha256"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_by_its_path(
    tmp_path: Path, change: dict[str, Any], where: str
) -> None:
    path = write(tmp_path, document() | change)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"{path}: {where}: ")


@pytest.mark.parametrize("missing", ["name", "base", "data", "prompt", "stages", "decoding"])
def test_a_missing_field_is_named(tmp_path: Path, missing: str) -> None:
    content = document()
    del content[missing]
    with pytest.raises(RecipeError, match=f": {missing}: Field required"):
        load_recipe(write(tmp_path, content))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cannot read the recipe .*none\.yaml: No such file"):
        load_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize("content", [b"a: [", b"\xff\xfe\x00", b"a: b: c"])
def test_what_is_not_yaml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(content)
    with pytest.raises(RecipeError, match="is not YAML"):
        load_recipe(path)


@pytest.mark.parametrize("content", [None, [], "text"])
def test_yaml_of_another_shape(tmp_path: Path, content: object) -> None:
    with pytest.raises(RecipeError, match="document: "):
        load_recipe(write(tmp_path, content))


class TestDigest:
    """A run goes on with a recipe of the same digest only."""

    def changed(self, **changes: Any) -> Recipe:
        return Recipe.model_validate(document() | changes)

    def test_what_is_trained_counts(self) -> None:
        before = recipe_digest(self.changed())
        assert recipe_digest(self.changed(seed=99)) != before
        assert recipe_digest(self.changed(adapter={"rank": 3})) != before
        decoding = document()["decoding"] | {"max_tokens": 7}
        assert recipe_digest(self.changed(decoding=decoding)) != before

    def test_how_the_version_is_used_does_not(self) -> None:
        before = recipe_digest(self.changed())
        assert recipe_digest(self.changed(description="other words")) == before
        assert recipe_digest(self.changed(filter={"min_relevance": 0.9})) == before
        assert recipe_digest(self.changed(spelling={"words_file": "words.txt"})) == before
        decoding = document()["decoding"] | {"temperatures": [0.3]}
        assert recipe_digest(self.changed(decoding=decoding)) == before


class TestLike:
    def write(self, folder: Path, name: str, text: str) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def test_fields_that_are_not_named_are_taken_over(self, tmp_path: Path) -> None:
        first = load_recipe(FOLDER / "grpo-1.yaml")
        path = self.write(
            tmp_path, "b.yaml", f"like: {FOLDER}/grpo-1.yaml\nname: other-1\nseed: 99\n"
        )
        other = load_recipe(path)
        assert other == first.model_copy(update={"name": "other-1", "seed": 99})

    def test_a_chain(self, tmp_path: Path) -> None:
        self.write(tmp_path, "a.yaml", f"like: {FOLDER}/sft-1.yaml\nname: a-1\n")
        path = self.write(tmp_path, "deep/b.yaml", "like: ../a.yaml\nseed: 3\n")
        assert (load_recipe(path).name, load_recipe(path).seed) == ("a-1", 3)

    def test_a_circle_is_said(self, tmp_path: Path) -> None:
        self.write(tmp_path, "a.yaml", "like: b.yaml\n")
        path = self.write(tmp_path, "b.yaml", "like: a.yaml\n")
        with pytest.raises(RecipeError, match="inherits from itself"):
            load_recipe(path)

    def test_a_missing_one_is_named(self, tmp_path: Path) -> None:
        path = self.write(tmp_path, "a.yaml", "like: nowhere.yaml\n")
        with pytest.raises(RecipeError, match=r"nowhere\.yaml"):
            load_recipe(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": None}, "name one as 'start'"),
        ({"judge": None}, "need a 'judge'"),
    ],
)
def test_what_alignment_needs(changes: dict[str, None], message: str) -> None:
    document = load_recipe(FOLDER / "grpo-1.yaml").model_dump(mode="json") | changes
    with pytest.raises(ValueError, match=message):
        Recipe.model_validate(document)


def test_tags_are_fitted_to_a_model_that_can_judge() -> None:
    document = load_recipe(FOLDER / "grpo-4.yaml").model_dump(mode="json")
    alone = document | {"stages": document["stages"][1:]}
    assert Recipe.model_validate(alone).stages[0].kind == "tags"
    with pytest.raises(ValueError, match="name one as 'start'"):
        Recipe.model_validate(alone | {"start": None})
