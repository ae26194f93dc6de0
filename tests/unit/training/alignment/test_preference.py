"""Preference pairs, their loss, and where the two are kept."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from tests.unit.training.worlds import make_world
from training.alignment.feedback import Feedback
from training.alignment.preference import (
    Drawn,
    Preference,
    anchor_loss,
    dpo_loss,
    load,
    prefer,
    save,
)
from training.recipe import DpoStage

STAGE = DpoStage(
    kind="dpo", queries=1, rewards={"relevance": 1.0, "agreement": 0.5}, min_margin=0.4,
    learning_rate=1e-4,
)  # fmt: skip


def feedback() -> Feedback:
    titles = {"a": "steel stake", "b": "metal post", "c": "oak stake"}
    # So many others that none of those words is a broad one.
    titles |= {f"other{i}": f"white thing {i}" for i in range(150)}
    world = make_world(titles, {"stel stake": {"a": 3.0, "b": 3.0, "c": 1.0}})
    return Feedback(world, lambda pairs: [0.9 if "metal" in t else 0.2 for _, t in pairs], first=3)


def drawn(text: str, number: int, *, tag: bool = True) -> Drawn:
    return Drawn(text, (number, 7), tag)


def test_the_best_and_the_worst_make_a_pair() -> None:
    samples = [drawn("oak", 1), drawn("metal post", 2), drawn("stakes", 3)]
    (pair,) = prefer(feedback(), [("stel stake", samples)], STAGE)
    # "metal post" adds the product that the query misses: as relevant as can be, and half of an
    # agreement. "oak" finds what is bad and is shown all the same: nothing.
    assert pair.best == (2, 7)
    assert pair.worst == (1, 7)
    assert pair.margin == pytest.approx(1.0 + 0.5)


def test_samples_that_are_worth_the_same_make_none() -> None:
    alike = [drawn("metal post", 1), drawn("metal post", 2)]
    assert prefer(feedback(), [("stel stake", alike), ("stel stake", [])], STAGE) == []


def test_pairs_are_kept(tmp_path: Path) -> None:
    pairs = [Preference("q", (1, 2), (3,), 0.5)]
    save(pairs, tmp_path / "pairs.json")
    assert load(tmp_path / "pairs.json") == pairs
    assert [p.name for p in tmp_path.iterdir()] == ["pairs.json"]


def test_loss_by_hand() -> None:
    zero = torch.zeros(1)
    # Nothing learnt yet: -log sigmoid(0) = log 2.
    assert dpo_loss(zero, zero, zero, zero, beta=0.1).item() == pytest.approx(math.log(2))
    # The best has become likelier by 3 nats, the worst less likely by 1: -log sigmoid(0.1 * 4).
    best, worst = torch.tensor([-2.0]), torch.tensor([-6.0])
    loss = dpo_loss(best, worst, torch.tensor([-5.0]), torch.tensor([-5.0]), beta=0.1)
    assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.4)))


def test_the_anchor_is_the_mean_loss_of_a_token_of_what_is_shown() -> None:
    best, lengths = torch.tensor([-6.0, -2.0, -50.0]), torch.tensor([4, 2, 5])
    shown = torch.tensor([True, True, False])
    assert anchor_loss(best, lengths, shown).item() == pytest.approx(8 / 6)
    assert anchor_loss(best, lengths, torch.zeros(3, dtype=torch.bool)).item() == 0.0
