"""Training a judge: what it learns from, that it learns, and that a stopped run goes on."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback

from tests.unit.training.judge.test_model import load
from tests.unit.training.tiny_bert import write_tiny_bert
from tests.unit.training.worlds import MATERIALS, THINGS, make_world, shop_tables
from training.data.dataset import Split, split
from training.data.pairs import World
from training.data.search import stems
from training.errors import DataError, RunError
from training.judge import train as judge_train
from training.judge.measure import calibration_error, measure_judge, order_accuracy, overlaps
from training.judge.model import Judge
from training.judge.train import (
    Example,
    JudgeSettings,
    calibrate,
    graded,
    junk,
    train_judge,
    training_examples,
)


@pytest.fixture(scope="module")
def shop() -> tuple[World, Split]:
    world = World(shop_tables())
    return world, split(world)


class TestExamples:
    def test_grades_become_targets(self) -> None:
        world = make_world(
            {"a": "oak ladder", "b": "pine ladder", "c": "drill"},
            {"ladder": {"b": 3.0, "a": 2.0}, "drill": {"c": 1.0}},
        )
        assert graded(world, ["drill", "ladder", "unknown"]) == [
            Example("drill", "drill", 0.0),
            Example("ladder", "oak ladder", 0.5),
            Example("ladder", "pine ladder", 1.0),
        ]

    def test_junk_shares_no_word_or_one_of_three(self) -> None:
        titles = {f"p{i}": f"{word} number {i}" for i, word in enumerate(["oak", "pine"] * 30)}
        world = make_world(
            titles | {"good": "oak garden ladder"}, {"oak garden ladder": {"good": 3.0}}
        )
        found = junk(world, ["oak garden ladder"], 40, seed=1)
        assert {e.target for e in found} == {0.0}
        shared = [len({"oak", "garden", "ladder"} & set(e.title.split())) for e in found]
        assert shared == [0, 1] * 20

    def test_junk_goes_by_the_corrected_spelling(self) -> None:
        titles = {f"p{i}": "oak ladder" for i in range(30)} | {"x": "drill"}
        world = make_world(titles, {"laddre": {"p0": 3.0}}, {"laddre": "ladder"})
        assert {e.title for e in junk(world, ["laddre"], 5, seed=1)} == {"drill"}

    def test_a_graded_product_is_never_junk(self) -> None:
        titles = {"a": "hammer", "b": "drill", "c": "bucket"}
        world = make_world(titles, {"ladder": {"a": 3.0, "b": 1.0}})
        assert {e.title for e in junk(world, ["ladder"], 5, seed=1)} == {"bucket"}

    def test_no_junk_to_be_had(self) -> None:
        world = make_world({"a": "oak ladder"}, {"ladder": {"a": 3.0}})
        with pytest.raises(DataError, match="too small"):
            junk(world, ["ladder"], 5, seed=1)

    def test_a_query_of_stop_words_alone_is_passed_by(self) -> None:
        world = make_world({"a": "oak", "b": "pine"}, {"the": {"a": 3.0}})
        assert len(junk(world, ["the"], 3, seed=1)) == 3

    def test_training_queries_only(self, shop: tuple[World, Split]) -> None:
        world, parts = shop
        examples = training_examples(world, parts, JudgeSettings(junk_share=0.5))
        assert {e.query for e in examples} <= set(parts.train)
        share = sum(e.target == 0.0 and not _shared(e) for e in examples) / len(examples)
        assert share == pytest.approx(0.5, abs=0.01)

    def test_a_limit(self, shop: tuple[World, Split]) -> None:
        world, parts = shop
        assert len(training_examples(world, parts, JudgeSettings(limit=8))) == 10

    def test_no_grades(self, shop: tuple[World, Split]) -> None:
        world, parts = shop
        with pytest.raises(DataError, match="no training query has a grade"):
            training_examples(world, replace(parts, train=("unknown",)), JudgeSettings())


def _shared(example: Example) -> set[str]:
    return set(stems(example.query)) & set(stems(example.title))


SETTINGS = JudgeSettings(epochs=4, junk_share=0.0, learning_rate=2e-3, rows=16, max_length=16)


@pytest.fixture(scope="module")
def simple() -> tuple[World, Split]:
    """A shop where steel, brass and the like is good for every query, and the rest is bad.

    A random model can learn that in seconds; to compare words it would have to be a real one.
    """
    titles = {
        f"p{i}{j}": f"{material} {thing} for the house"
        for i, thing in enumerate(THINGS)
        for j, material in enumerate(MATERIALS)
    }
    grades = {
        f"{material} {thing}": {
            f"p{(i + k) % len(THINGS)}{(j + k) % len(MATERIALS)}": 1.0 if (j + k) % 2 else 3.0
            for k in range(6)
        }
        for i, thing in enumerate(THINGS)
        for j, material in enumerate(MATERIALS)
    }
    world = make_world(titles, grades)
    return world, split(world)


class Stopped(Exception):
    """What ends a run half-way."""


class StopAt(TrainerCallback):  # type: ignore[misc]
    """Raises right after a checkpoint was written."""

    def on_save(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        if state.global_step == 20:
            raise Stopped


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("judge")
    write_tiny_bert(folder / "base")
    return folder


@pytest.fixture(scope="module")
def made(simple: tuple[World, Split], place: Path) -> Judge:
    run = place / "whole"
    return train_judge(*simple, SETTINGS, run=run, base=place / "base", checkpoint_every=20)


class TestTraining:
    def test_it_learns(self, simple: tuple[World, Split], made: Judge) -> None:
        world, parts = simple
        figures = measure_judge(made, world, parts.development)
        assert figures["order"] > 0.7
        assert figures["relevant"]["auc"][0] > 0.7
        assert figures["spearman"] > 0.4

    def test_the_mean_score_is_the_mean_grade(
        self, simple: tuple[World, Split], made: Judge
    ) -> None:
        world, parts = simple
        examples = judge_train.development_examples(world, parts, SETTINGS)
        scores = made.score([e.pair for e in examples])
        # What least cross-entropy with a free shift implies.
        assert np.mean(scores) == pytest.approx(np.mean([e.target for e in examples]), abs=0.005)

    def test_a_stopped_run_ends_in_the_same_weights(
        self,
        simple: tuple[World, Split],
        made: Judge,
        place: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        run = place / "stopped"
        with monkeypatch.context() as patched:
            patched.setattr(judge_train, "Trainer", partial(Trainer, callbacks=[StopAt()]))
            with pytest.raises(Stopped):
                train_judge(*simple, SETTINGS, run=run, base=place / "base", checkpoint_every=20)
        again = train_judge(*simple, SETTINGS, run=run, base=place / "base", checkpoint_every=20)
        for name, weights in made.model.state_dict().items():
            assert torch.equal(weights, again.model.state_dict()[name]), name
        assert again.calibration == made.calibration

    def test_a_finished_run_is_not_trained_again(
        self, simple: tuple[World, Split], made: Judge, place: Path
    ) -> None:
        checkpoints = place / "whole" / "checkpoints"
        before = sorted(p.name for p in checkpoints.iterdir())
        again = train_judge(*simple, SETTINGS, run=place / "whole", base=place / "base")
        for name, weights in made.model.state_dict().items():
            assert torch.equal(weights, again.model.state_dict()[name]), name
        assert again.calibration == made.calibration
        assert sorted(p.name for p in checkpoints.iterdir()) == before

    def test_another_seed_makes_another_judge(
        self, simple: tuple[World, Split], made: Judge, place: Path
    ) -> None:
        other = replace(SETTINGS, seed=8)
        judge = train_judge(*simple, other, run=place / "other", base=place / "base")
        assert judge.calibration != made.calibration

    def test_a_run_with_other_settings_is_refused(
        self, simple: tuple[World, Split], made: Judge, place: Path
    ) -> None:
        with pytest.raises(RunError, match="holds a run with other settings"):
            train_judge(
                *simple, replace(SETTINGS, epochs=2), run=place / "whole", base=place / "base"
            )


class Fixed(Judge):
    """A judge whose raw scores are known."""

    def __init__(self, raw: dict[str, float]) -> None:
        self.known = raw

    def raw(self, pairs: Any) -> torch.Tensor:
        return torch.tensor([self.known[title] for _, title in pairs])


class TestCalibrate:
    def test_finds_the_scaling_that_made_the_targets(self) -> None:
        raw = {f"t{i}": i / 10 for i in range(-30, 31)}
        examples = [
            Example("q", title, 1.0 / (1.0 + math.exp(-(1.7 * z - 0.4))))
            for title, z in raw.items()
        ]
        found = calibrate(Fixed(raw), examples)
        assert found.slope == pytest.approx(1.7, abs=0.01)
        assert found.shift == pytest.approx(-0.4, abs=0.01)

    def test_scores_that_fall_with_relevance_are_refused(self) -> None:
        examples = [Example("q", "good", 1.0), Example("q", "bad", 0.0)]
        with pytest.raises(RunError, match="do not rise"):
            calibrate(Fixed({"good": -1.0, "bad": 1.0}), examples)


class TestFigures:
    def test_calibration_error_by_hand(self) -> None:
        scores, targets = np.array([0.9, 0.1, 0.2, 0.8]), np.array([1.0, 0.0, 0.5, 0.5])
        # Bins {0.1, 0.2} and {0.8, 0.9}: |0.15 - 0.25| and |0.85 - 0.75|.
        assert calibration_error(scores, targets, bins=2) == pytest.approx(0.1)
        assert calibration_error(np.array([]), np.array([])) == 0.0

    def test_order_accuracy_by_hand(self) -> None:
        queries = ["a", "a", "a", "b", "b"]
        scores = np.array([0.9, 0.5, 0.5, 0.1, 0.2])
        targets = np.array([1.0, 0.5, 0.0, 1.0, 0.0])
        # Of a: two pairs right, one tied; of b: one pair wrong.
        assert order_accuracy(queries, scores, targets) == pytest.approx(2.5 / 4)
        assert math.isnan(order_accuracy(["a", "b"], scores[:2], targets[:2]))

    def test_overlaps_by_hand(self) -> None:
        world = make_world({"a": "oak ladders"}, {"ladder brass": {}, "lader": {}},
                           {"lader": "ladder"})  # fmt: skip
        examples = [Example(q, "oak ladders", 1.0) for q in ("ladder brass", "lader", "the")]
        assert overlaps(world, examples).tolist() == [0.5, 1.0, 0.0]

    def test_nothing_to_tell_apart(self, tmp_path: Path) -> None:
        world = make_world({"a": "oak"}, {"oak": {"a": 3.0}})
        with pytest.raises(DataError, match="relevant and irrelevant"):
            measure_judge(load(tmp_path / "bert"), world, ["oak"])

    def test_figures_are_json(self, shop: tuple[World, Split], tmp_path: Path) -> None:
        world, parts = shop
        figures = measure_judge(load(tmp_path / "bert"), world, parts.development)
        assert json.loads(json.dumps(figures)) == figures
        assert figures["pairs"] == len(graded(world, parts.development))
