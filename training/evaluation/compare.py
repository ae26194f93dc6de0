"""Comparison of rewriting methods on the same queries: the table of docs/evaluation.md.

Every way gives up to four rewrites of a query, which are fused with it at one budget: with equal
weights, and with :data:`training.data.search.REWRITE_WEIGHT` on each rewrite. Definitions are
those of :mod:`training.evaluation.evaluate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl

from training.data.pairs import World
from training.data.search import REWRITE_WEIGHT
from training.evaluation.evaluate import (
    MOST,
    Rewriter,
    Row,
    by_slice,
    corrections_of,
    judge_row,
)
from training.evaluation.measure import Measured
from training.judge.first_results import FirstResults

mpl.use("agg")
from matplotlib import pyplot as plt

PLAIN = "the plain query"
CORRECTIONS = "a web search engine's spelling corrections (oracle)"
SLICES = ("all", "misspelled", "long", "short")
SLICE_TITLES = {
    "all": "All {n} queries",
    "misspelled": "The {n} of them that are misspelled",
    "long": "The {n} of five words or more (long tail)",
    "short": "The {n} of one or two words (short head)",
}


@dataclass(frozen=True, slots=True)
class Way:
    """A rewriting method and its outcomes at both weights."""

    name: str
    equal: Row
    less: Row


def way(
    world: World,
    queries: Sequence[str],
    name: str,
    rewriter: Rewriter,
    first: FirstResults | None = None,
) -> Way:
    """Outcomes of a rewriter's first :data:`MOST` rewrites."""

    def few(query: str) -> Sequence[str]:
        return rewriter(query)[:MOST]

    return Way(
        name,
        judge_row(world, queries, few, 1.0, first),
        judge_row(world, queries, few, REWRITE_WEIGHT, first),
    )


def way_of(measured: Measured) -> Way:
    """Outcomes of a version with up to :data:`training.evaluation.evaluate.MOST` rewrites."""
    rows = measured.rows
    return Way(measured.version, rows[f"up to {MOST} rewrites"], rows[f"up to {MOST}, less weight"])


def baseline_ways(
    world: World,
    queries: Sequence[str],
    rewriters: Mapping[str, Rewriter],
    first: FirstResults | None = None,
) -> list[Way]:
    """The plain query, the corrections, then ``rewriters`` in their order."""
    known: dict[str, Rewriter] = {PLAIN: lambda _: (), CORRECTIONS: corrections_of(world)}
    return [way(world, queries, n, r, first) for n, r in (known | dict(rewriters)).items()]


def record(
    world: World, ways: Sequence[Way], measured: Sequence[Measured], *, exam: str
) -> dict[str, Any]:
    """Every figure of a comparison, with intervals, as JSON."""
    return {
        "exam": exam,
        "depth": world.depth,
        "rewrite_weight": REWRITE_WEIGHT,
        "versions": {m.version: {"digest": m.digest, "tagging": m.tagging} for m in measured},
        "ways": [
            {"name": w.name, "equal": by_slice(world, w.equal), "less": by_slice(world, w.less)}
            for w in ways
        ],
    }


def as_markdown(found: Mapping[str, Any]) -> str:
    """A table for each slice of queries, then the tags of each version."""
    parts = []
    for name in SLICES:
        figures = [(w["name"], w["equal"].get(name), w["less"].get(name)) for w in found["ways"]]
        rows = [_line(n, e, s) for n, e, s in figures if e and s]
        if rows:
            title = SLICE_TITLES[name].format(n=figures[0][1]["queries"])
            parts.append("\n".join([f"{title}:", "", *_head(found), *rows]))
    if found["versions"]:
        tags = [
            "| version | pairs | AUC | accuracy |",
            "|---|---|---|---|",
            *(
                f"| `{name}` | {v['tagging']['pairs']} | {_range(v['tagging']['auc'])} "
                f"| {_range(v['tagging']['accuracy'], percent=True)} |"
                for name, v in found["versions"].items()
            ),
        ]
        parts.append("\n".join(["Tags of mined pairs:", "", *tags]))
    return "\n\n".join(parts)


def _head(found: Mapping[str, Any]) -> list[str]:
    weight, depth = found["rewrite_weight"], found["depth"]
    titles = (
        "searching with",
        f"recall@{depth}, equal weights",
        "gain",
        "harmed",
        f"recall@{depth}, rewrites {weight}",
        "gain",
        "harmed",
        "increment",
        "hit rate",
        "relevance",
        "covered",
        "rewrites",
    )
    return [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]


def _line(name: str, equal: Mapping[str, Any], less: Mapping[str, Any]) -> str:
    if name == PLAIN:
        return f"| {name} | {equal['recall'][0]:.3f} |" + " |" * 10
    relevance = equal["relevance"][0]
    cells = [
        _cells(equal),
        _cells(less),
        f"{equal['increment'][0]:.3f}",
        f"{equal['hit_rate'][0]:.3f}",
        # NaN is unequal to itself: nothing was judged.
        f"{relevance:.3f}" if relevance == relevance else "-",  # noqa: PLR0124
        f"{100 * equal['covered'][0]:.0f} %",
        f"{equal['rewrites'][0]:.2f}",
    ]
    return f"| + {name} | " + " | ".join(cells) + " |"


def _cells(figures: Mapping[str, Any]) -> str:
    return (
        f"{figures['recall'][0]:.3f} | {_range(figures['gain'], sign='+')} "
        f"| {100 * figures['harmed'][0]:.1f} %"
    )


def _range(values: Sequence[float], *, percent: bool = False, sign: str = "") -> str:
    if percent:
        mean, low, high = (100 * v for v in values)
        return f"{mean:.1f} % [{low:.1f}, {high:.1f}]"
    mean, low, high = values
    return f"{mean:{sign}.3f} [{low:.3f}, {high:.3f}]"


def plot(found: Mapping[str, Any], path: Path) -> None:
    """Gains in recall over the plain query with their intervals, all and misspelled queries.

    Raises:
        OSError: ``path`` cannot be written.
    """
    ways = [w for w in found["ways"] if w["name"] != PLAIN]
    shown = [name for name in SLICES[:2] if all(name in w["equal"] for w in ways)]
    figure, axes = plt.subplots(
        1, len(shown), figsize=(6 * len(shown), 1.2 + 0.42 * len(ways)), sharey=True, squeeze=False
    )
    places = range(len(ways))
    weights = (
        ("equal", "equal weights", 0.15),
        ("less", f"rewrites weigh {found['rewrite_weight']}", -0.15),
    )
    for axis, name in zip(axes[0], shown, strict=True):
        for key, label, shift in weights:
            gains = [w[key][name]["gain"] for w in ways]
            means = [g[0] for g in gains]
            errors = [[g[0] - g[1] for g in gains], [g[2] - g[0] for g in gains]]
            axis.errorbar(
                means, [-p + shift for p in places], xerr=errors, fmt="o", ms=4, lw=1, label=label
            )
        axis.axvline(0, color="grey", lw=0.8)
        axis.set_title(SLICE_TITLES[name].format(n=ways[0]["equal"][name]["queries"]), fontsize=10)
        axis.set_xlabel(f"recall@{found['depth']} gained over the plain query")
        axis.grid(axis="x", alpha=0.3)
    axes[0][0].set_yticks([-p for p in places], [w["name"] for w in ways], fontsize=8)
    # Outside: inside it hides points.
    axes[0][-1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
