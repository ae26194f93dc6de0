"""Plots of a run's journal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.errors import RunError
from training.finetuning.curves import plot_run, read_series


def journal(folder: Path, records: list[dict[str, object]]) -> Path:
    path = folder / "figures.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_what_was_logged_twice_counts_once(tmp_path: Path) -> None:
    # A run killed after step 2 and continued from step 1 logs step 2 again.
    path = journal(
        tmp_path,
        [
            {"stage": 0, "step": 1, "loss": 3.0},
            {"stage": 0, "step": 2, "loss": 9.0},
            {"stage": 0, "step": 2, "loss": 2.0},
            {"stage": 1, "step": 1, "reward": 0.5, "note": "text"},
        ],
    )
    assert read_series(path) == {
        0: {"loss": ([1, 2], [3.0, 2.0])},
        1: {"reward": ([1], [0.5])},
    }


def test_a_picture_for_each_stage_that_logged(tmp_path: Path) -> None:
    records: list[dict[str, object]] = [
        {"stage": 0, "step": step, "loss": 1 / step} for step in range(1, 30)
    ]
    records += [
        {"stage": 2, "step": step, "reward": step, "rewards/gain/mean": 0.1, "kl": 0.0}
        for step in range(1, 5)
    ]
    records.append({"stage": 3, "step": 1, "unknown": 1.0})
    journal(tmp_path, records)
    written = plot_run(tmp_path, ["sft", "sample", "grpo"], "test-1")
    assert [path.name for path in written] == ["curves-0.png", "curves-2.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_no_journal_no_pictures(tmp_path: Path) -> None:
    assert plot_run(tmp_path, [], "test-1") == []


def test_a_broken_journal_is_said(tmp_path: Path) -> None:
    (tmp_path / "figures.jsonl").write_text("{\n")
    with pytest.raises(RunError, match="not the journal of a run"):
        read_series(tmp_path / "figures.jsonl")
