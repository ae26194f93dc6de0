from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.unit.training.worlds import make_world
from training.data.pairs import QueryPairs, Scored
from training.data.picking import pick_queries
from training.errors import DataError, RunError
from training.finetuning.stages import last_checkpoint, optimise
from training.folder import Run, write_json
from training.recipe import Optimiser, Recipe, load_recipe
from training.schedule import load_pairs

SHIPPED = Path(__file__).parents[3] / "training" / "recipes" / "sft-1.yaml"


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe(SHIPPED)


class TestFolder:
    def test_the_same_recipe_goes_on(self, tmp_path: Path, recipe: Recipe) -> None:
        Run(tmp_path / "run", recipe).finish(0, {"kind": "domain", "steps": 3})
        again = Run(tmp_path / "run", recipe)
        assert again.done(0) == {"kind": "domain", "steps": 3}
        assert again.done(1) is None

    def test_another_recipe_is_refused_and_changes_nothing(
        self, tmp_path: Path, recipe: Recipe
    ) -> None:
        Run(tmp_path, recipe)
        before = (tmp_path / "recipe.json").read_bytes()
        with pytest.raises(RunError, match="holds a run of another recipe"):
            Run(tmp_path, recipe.model_copy(update={"seed": 99}))
        assert (tmp_path / "recipe.json").read_bytes() == before

    def test_a_recipe_that_gained_stages_goes_on(self, tmp_path: Path, recipe: Recipe) -> None:
        shorter = recipe.model_copy(update={"stages": recipe.stages[:-2]})
        Run(tmp_path, shorter).finish(0, {"kind": "domain", "steps": 3})
        assert Run(tmp_path, recipe).done(0) == {"kind": "domain", "steps": 3}
        with pytest.raises(RunError, match="holds a run of another recipe"):
            Run(tmp_path, shorter)  # what the longer one has done is not thrown away

    def test_a_stage_put_in_between_makes_it_another_recipe(
        self, tmp_path: Path, recipe: Recipe
    ) -> None:
        Run(tmp_path, recipe)
        stages = (recipe.stages[0], *recipe.stages)
        with pytest.raises(RunError, match="holds a run of another recipe"):
            Run(tmp_path, recipe.model_copy(update={"stages": stages}))

    def test_how_the_version_is_used_may_be_chosen_later(
        self, tmp_path: Path, recipe: Recipe
    ) -> None:
        Run(tmp_path, recipe)
        Run(tmp_path, recipe.model_copy(update={"description": "other words"}))

    def test_a_digest_made_by_another_rule_does_not_matter(
        self, tmp_path: Path, recipe: Recipe
    ) -> None:
        Run(tmp_path, recipe)
        marker = tmp_path / "recipe.json"
        content = json.loads(marker.read_text())
        marker.write_text(json.dumps(content | {"digest": "of an older release"}))
        Run(tmp_path, recipe)

    @pytest.mark.parametrize("content", ["", "[]", "{}", '{"recipe": {"name": 3}}'])
    def test_a_folder_of_something_else_is_refused(
        self, tmp_path: Path, recipe: Recipe, content: str
    ) -> None:
        (tmp_path / "recipe.json").write_text(content)
        with pytest.raises(RunError, match="choose another --run folder"):
            Run(tmp_path, recipe)


class TestWriteJson:
    def test_whole_or_not_at_all(self, tmp_path: Path) -> None:
        path = tmp_path / "figures.json"
        write_json(path, {"b": 1})
        with pytest.raises(TypeError):
            write_json(path, {"b": object()})
        assert json.loads(path.read_text()) == {"b": 1}
        assert [p.name for p in tmp_path.iterdir()] == ["figures.json"]

    def test_its_folder_is_made(self, tmp_path: Path) -> None:
        # Else the figures of a long evaluation would be lost at its end.
        write_json(tmp_path / "new" / "figures.json", [1])
        assert json.loads((tmp_path / "new" / "figures.json").read_text()) == [1]


def checkpoint(folder: Path, step: int, state: str | None = "{}") -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "adapter_model.safetensors").write_bytes(b"x")
    if state is not None:
        (path / "trainer_state.json").write_text(state)
    return path


class TestLastCheckpoint:
    def test_the_newest_by_number(self, tmp_path: Path) -> None:
        checkpoint(tmp_path, 50)
        newest = checkpoint(tmp_path, 100)
        assert last_checkpoint(tmp_path) == newest

    @pytest.mark.parametrize("state", [None, "", '{"global_step": 1'])
    def test_one_that_a_kill_cut_short_is_passed_over(
        self, tmp_path: Path, state: str | None
    ) -> None:
        whole = checkpoint(tmp_path, 50)
        checkpoint(tmp_path, 100, state)
        assert last_checkpoint(tmp_path) == whole

    def test_none(self, tmp_path: Path) -> None:
        assert last_checkpoint(tmp_path / "none") is None
        checkpoint(tmp_path, 50, None)
        assert last_checkpoint(tmp_path) is None


def test_a_stage_without_rows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="stage 1 has nothing to learn from"):
        optimise(
            None,  # type: ignore[arg-type]
            [], Optimiser(learning_rate=1e-3), run=tmp_path, stage=1, seed=0, checkpoint_every=1,
        )  # fmt: skip


def test_queries_to_sample_have_something_to_find() -> None:
    world = make_world({"a": "x"}, {f"q{n}": {"a": 3.0 if n % 2 else 1.0} for n in range(20)})
    chosen = pick_queries(world, list(world.canonical), 5, seed=1)
    assert len(set(chosen)) == 5
    assert all(int(q[1:]) % 2 for q in chosen)
    assert chosen == pick_queries(world, list(world.canonical), 5, seed=1)
    assert len(pick_queries(world, list(world.canonical), 99, seed=1)) == 10


def test_samples_survive_a_restart(tmp_path: Path) -> None:
    from dataclasses import asdict

    pairs = [QueryPairs("q", [Scored("a", "sample", 1.0, 0.5)], [], [Scored("b", "x", 0.0, 0.0)])]
    write_json(tmp_path / "samples.json", [asdict(p) for p in pairs])
    assert load_pairs(tmp_path / "samples.json") == {"q": pairs[0]}
