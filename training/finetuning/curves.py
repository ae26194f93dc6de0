"""Plots of what a stage logged: losses, rewards, and how far the model has gone."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

from training.errors import RunError

mpl.use("agg")
from matplotlib import pyplot as plt

Series = dict[str, tuple[list[int], list[float]]]
"""Name -> steps and values."""

PANELS: dict[str, tuple[str, ...]] = {
    "loss": ("loss", "write", "tag"),
    "fused reward": ("reward",),
    "rewards": (
        "rewards/relevance/mean", "rewards/productivity/mean", "rewards/increment/mean",
        "rewards/discovery/mean", "rewards/gain/mean", "rewards/rules/mean",
        "rewards/agreement/mean",
    ),
    "divergence from the start": ("kl",),
    "entropy of tokens (nats)": ("entropy",),
    "tags that are right, of pairs to judge": ("tag_accuracy",),
    "tokens of a rewrite": ("completions/mean_length",),
}  # fmt: skip
SMOOTH = 15
"""Records that a thick line is the mean of."""


def read_series(figures: Path) -> dict[int, Series]:
    """Stage -> what was logged of it. Of a step that was logged twice, the later record counts.

    Raises:
        RunError: the file is not there, or not the journal of a run.
    """
    records: dict[int, dict[int, dict[str, float]]] = defaultdict(dict)
    try:
        for line in figures.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            records[int(record.pop("stage"))].setdefault(int(record.pop("step")), {}).update(record)
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise RunError(f"{figures} is not the journal of a run: {error}") from error
    stages: dict[int, Series] = {}
    for stage, steps in records.items():
        series: Series = defaultdict(lambda: ([], []))
        for step in sorted(steps):
            for name, value in steps[step].items():
                if isinstance(value, int | float) or _is_number(value):
                    series[name][0].append(step)
                    series[name][1].append(float(value))
        stages[stage] = dict(series)
    return stages


def plot_stage(series: Series, path: Path, title: str) -> None:
    """One picture of a stage: a panel for each kind of figure that it logged."""
    shown = {panel: [name for name in names if name in series] for panel, names in PANELS.items()}
    shown = {panel: names for panel, names in shown.items() if names}
    if not shown:
        return
    rows = (len(shown) + 1) // 2
    figure, axes = plt.subplots(rows, 2, figsize=(11, 2.9 * rows), squeeze=False)
    for axis, (panel, names) in zip(axes.flat, shown.items(), strict=False):
        for name in names:
            steps, values = series[name]
            (line,) = axis.plot(steps, values, alpha=0.25, linewidth=0.8)
            label = name.removeprefix("rewards/").removesuffix("/mean")
            axis.plot(steps, _smooth(values), color=line.get_color(), linewidth=1.8, label=label)
        axis.set_title(panel, fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25)
        if len(names) > 1:
            axis.legend(fontsize=7)
    for axis in list(axes.flat)[len(shown) :]:
        axis.set_visible(False)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def plot_run(folder: Path, kinds: Sequence[str], name: str) -> list[Path]:
    """``curves-N.png`` of each stage of a run that logged anything."""
    figures = folder / "figures.jsonl"
    if not figures.is_file():
        return []
    written = []
    for stage, series in sorted(read_series(figures).items()):
        path = folder / f"curves-{stage}.png"
        kind = kinds[stage] if stage < len(kinds) else "?"
        plot_stage(series, path, f"{name}, stage {stage} ({kind})")
        if path.is_file():
            written.append(path)
    return written


def _smooth(values: Sequence[float]) -> list[float]:
    """Trailing means of up to :data:`SMOOTH` values."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - SMOOTH)
    return list((sums[ends] - sums[starts]) / (ends - starts))


def _is_number(value: object) -> bool:
    try:
        float(str(value))
    except ValueError:
        return False
    return True
