"""The report of a simulated experiment: JSON, Markdown for people, plots. All say 'simulated'."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

from training.ab.analysis import METRICS
from training.ab.run import CONTROL, Visit
from training.folder import write_json

mpl.use("agg")
from matplotlib import pyplot as plt

NAMES = {"ucvr": "UCVR", "uctr": "UCTR"}
SLICES = {"all": "all searches", "long_tail": "long tail"}


def write_report(folder: Path, result: dict[str, Any], visits: Sequence[Visit]) -> None:
    """Write ``report.json``, ``report.md``, ``visits.jsonl`` and three plots into ``folder``."""
    write_json(folder / "report.json", result)
    with (folder / "visits.jsonl").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(asdict(visit)) + "\n" for visit in visits)
    plot_rates(result, folder / "rates.png")
    plot_differences(result, folder / "differences.png")
    plot_latency(visits, folder / "latency.png")
    (folder / "report.md").write_text(as_markdown(result), encoding="utf-8")


def as_markdown(result: dict[str, Any]) -> str:
    """The report in words and tables."""
    set_up = result["set_up"]
    lines = [
        "# Simulated experiment",
        "",
        (
            "Every figure here is simulated: made-up shoppers searched through the real service, "
            "and a model of users decided what they clicked and bought. Nothing here is a "
            "measurement of people. (Latency is measured, of simulated traffic.)"
        ),
        "",
        f"{set_up['shoppers']} simulated shoppers, {set_up['queries']} held-out queries of "
        f"{set_up['source']}, seed {set_up['seed']}; arms: "
        + ", ".join(f"{arm} {100 * share:.1f} %" for arm, share in set_up["shares"].items())
        + f"; products without a grade: {set_up['unjudged']}.",
        "",
        "## Can it be trusted? (simulated)",
        "",
        *checks(result),
    ]
    for name, title in SLICES.items():
        part = result["analysis"][name]
        rule = f": {part['rule']}" if "rule" in part else ""
        lines += ["", f"## Simulated shoppers, {title}{rule}", "", *_arms(part), ""]
        lines += [*_tests(part), "", *_expected(part)]
    lines += ["", "![Simulated rates](rates.png)", "![Simulated differences](differences.png)"]
    lines += ["![Latency of simulated traffic](latency.png)", ""]
    return "\n".join(lines)


def checks(result: dict[str, Any]) -> list[str]:
    """One line for each possible flaw of the comparison."""
    analysis = result["analysis"]
    ratio = analysis["sample_ratio"]
    seen = ", ".join(
        f"{arm} {one['seen']} (expected {one['expected']:.0f})"
        for arm, one in ratio["arms"].items()
    )
    strays, lost = analysis["visitors_by_another_version"], analysis["visitors_unanswered"]
    lines = [
        (
            f"- {'**Sample ratio mismatch**' if ratio['mismatch'] else 'Sample ratio: as set up'} "
            f"(simulated visitors seen: {seen}; chi-square p = {ratio['p']:.3g})."
        ),
        (
            f"- {'**Not sticky**' if strays else 'Sticky'}: {strays} simulated visitors were "
            "answered by another version than their arm's."
        ),
        (
            f"- {lost} simulated visitors got no answer at all; they count in the arm that they "
            "were assigned to."
        ),
    ]
    if result["routing_changed"]:
        lines.append("- **The routing was changed while the experiment ran**: run it again.")
    return lines


def _arms(part: dict[str, Any]) -> list[str]:
    lines = [
        "Simulated visitors by arm (95 % Wilson intervals in brackets; latency in ms).",
        "",
        "| arm | visitors | UCVR | UCTR | purchases | searches | coverage | p50 | p95 | p99 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for arm, figures in part["arms"].items():
        latency = [figures["latency_ms"][at] for at in ("p50", "p95", "p99")]
        coverage = figures["coverage"]
        lines.append(
            f"| {arm} | {figures['visitors']} | {_share(figures['ucvr'])} "
            f"| {_share(figures['uctr'])} | {figures['purchases']} | {figures['searches']} "
            f"| {'' if coverage is None else f'{100 * coverage:.1f} %'} | "
            + " | ".join("" if value is None else f"{value:.0f}" for value in latency)
            + " |"
        )
    return lines


def _tests(part: dict[str, Any]) -> list[str]:
    lines = [
        (
            "Simulated differences in percentage points (two-proportion z-tests, 95 % Newcombe "
            "intervals; 'finds' is the smallest rise that the test finds with 80 % power)."
        ),
        "",
        "| rate | arm | less | difference | p | p (Holm) | finds |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {NAMES[test['metric']]} | {test['arm']} | {test['against']} "
        f"| {_points(test['difference'], test['low'], test['high'])} | {test['p']:.3g} "
        f"| {test['p_holm']:.3g} | {100 * test['detectable']:.2f} |"
        for test in part["tests"]
    ]
    return lines


def _expected(part: dict[str, Any]) -> list[str]:
    lines = [
        (
            "What the user model expects of the served pages minus the pages without "
            "rewrites, for the same simulated visitors (percentage points, 95 % bootstrap "
            "intervals)."
        ),
        "",
        "| arm | UCVR | UCTR |",
        "|---|---|---|",
    ]
    lines += [
        f"| {arm} | {_points(*gain['ucvr'])} | {_points(*gain['uctr'])} |"
        for arm, gain in part["expected_gain"].items()
    ]
    return lines


def plot_rates(result: dict[str, Any], path: Path) -> None:
    """UCVR and UCTR of each arm with their intervals, all searches and the long tail."""
    figure, axes = plt.subplots(1, len(METRICS), figsize=(10, 3.6))
    for axis, metric in zip(axes, METRICS, strict=True):
        for offset, (name, title) in zip((-0.12, 0.12), SLICES.items(), strict=True):
            arms = result["analysis"][name]["arms"]
            rates = [figures[metric] for figures in arms.values()]
            known = [(at, r) for at, r in enumerate(rates) if r["rate"] is not None]
            middle = [100 * r["rate"] for _, r in known]
            below = [100 * (r["rate"] - r["low"]) for _, r in known]
            above = [100 * (r["high"] - r["rate"]) for _, r in known]
            places = [at + offset for at, _ in known]
            axis.errorbar(places, middle, [below, above], fmt="o", capsize=4, label=title)
            axis.set_xticks(range(len(arms)), list(arms))
        axis.set_title(f"{NAMES[metric]}, simulated (%)", fontsize=10)
        axis.grid(axis="y", alpha=0.25)
    axes[0].legend(fontsize=8)
    _save(figure, path, "Simulated shoppers: rates per visitor, 95 % intervals")


def plot_differences(result: dict[str, Any], path: Path) -> None:
    """Differences between arms with their intervals, and the smallest detectable difference."""
    rows = [
        (f"{NAMES[test['metric']]}, {title}\n{test['arm']} less {test['against']}", test)
        for name, title in SLICES.items()
        for test in result["analysis"][name]["tests"]
    ]
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.5 * len(rows)))
    for place, (_, test) in enumerate(rows):
        low, middle, high = (100 * test[at] for at in ("low", "difference", "high"))
        axis.plot([low, high], [place, place], color="C0")
        axis.plot(middle, place, "o", color="C0")
        axis.plot(100 * test["detectable"], place, "|", color="C3", markersize=14)
    axis.plot([], [], "|", color="C3", label="smallest rise found with 80 % power")
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set_yticks(range(len(rows)), [label for label, _ in rows], fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel("percentage points, simulated")
    axis.legend(fontsize=8)
    _save(figure, path, "Simulated shoppers: differences between arms, 95 % intervals")


def plot_latency(visits: Sequence[Visit], path: Path) -> None:
    """Share of calls answered within a time, by arm."""
    times: dict[str, list[float]] = {}
    for visit in visits:
        for search in visit.searches:
            if search.asked is not None:
                times.setdefault(visit.arm, []).append(1000 * search.asked.seconds)
    figure, axis = plt.subplots(figsize=(7, 3.6))
    for arm, values in sorted(times.items()):
        axis.step(np.sort(values), np.arange(1, len(values) + 1) / len(values), label=arm)
    axis.set_xlabel("milliseconds of a whole call")
    axis.set_ylabel("share of calls")
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8)
    _save(figure, path, f"Latency of simulated traffic ({CONTROL} makes no calls)")


def _save(figure: Any, path: Path, title: str) -> None:
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=110, metadata={"Software": None})
    plt.close(figure)


def _share(value: dict[str, Any]) -> str:
    if value["rate"] is None:
        return ""
    return f"{100 * value['rate']:.2f} % [{100 * value['low']:.2f}, {100 * value['high']:.2f}]"


def _points(middle: float, low: float, high: float) -> str:
    return f"{100 * middle:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"
