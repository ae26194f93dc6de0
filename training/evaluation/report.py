"""Evaluation records as text for people."""

from __future__ import annotations

import math
from typing import Any


def _cell(values: list[float], *, percent: bool = False) -> str:
    mean, low, high = (100 * v for v in values) if percent else values
    return (
        f"{mean:.1f} % [{low:.1f}, {high:.1f}]"
        if percent
        else f"{mean:.3f} [{low:.3f}, {high:.3f}]"
    )


def _known(values: list[float]) -> bool:
    return not math.isnan(values[0])


def _mean(values: list[float]) -> str:
    return f"{values[0]:.3f}" if _known(values) else "-"


def as_table(result: dict[str, Any]) -> str:
    """A Markdown table of every row and slice, with 95 % intervals, and the tagging figures."""
    tag = result["tagging"]
    lines = [
        (
            f"Version {result['version']}, {result['fold']} "
            f"(95 % bootstrap intervals over queries in brackets)."
        ),
        "",
        (
            f"Tagging of {tag['pairs']} mined pairs: AUC {_cell(tag['auc'])}, "
            f"accuracy {_cell(tag['accuracy'], percent=True)}."
        ),
        "",
        (
            "Rewrites count as much as the query itself, or "
            f"{result['rewrite_weight']} of it where it says 'less weight'."
        ),
        "",
        (
            f"| queries | rewrites by | recall@{result['depth']} | gain over the plain query "
            "| harmed | covered | increment | relevance | rewrites |"
        ),
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row, parts in result["rows"].items():
        for name, figures in parts.items():
            lines.append(
                f"| {name} ({figures['queries']}) | {row} | {_cell(figures['recall'])} "
                f"| {_cell(figures['gain'])} | {_cell(figures['harmed'], percent=True)} "
                f"| {100 * figures['covered'][0]:.1f} % | {figures['increment'][0]:.3f} "
                f"| {_mean(figures['relevance'])} | {figures['rewrites'][0]:.2f} |"
            )
    return "\n".join(lines)


def as_differences(result: dict[str, Any]) -> str:
    """A Markdown table of paired differences to another version, with 95 % intervals."""
    lines = [
        f"{result['version']} less {result['against']}, {result['fold']} (paired bootstrap).",
        "",
        (
            f"| queries | rewrites | recall@{result['depth']} | harmed | covered | increment "
            "| productivity |"
        ),
        "|---|---|---|---|---|---|---|---|",
    ]
    for row, parts in result["differences"].items():
        for name, figures in parts.items():
            lines.append(
                f"| {name} | {row} | {_cell(figures['recall'])} "
                f"| {_cell(figures['harmed'], percent=True)} "
                f"| {_cell(figures['covered'], percent=True)} "
                f"| {_cell(figures['increment'])} | {_cell(figures['productivity'])} "
                f"| {_cell(figures['relevance']) if _known(figures['relevance']) else '-'} |"
            )
    tags = result["tag_difference"]
    lines += ["", f"Accuracy of tags: {_cell(tags['accuracy'], percent=True)}."]
    return "\n".join(lines)
