"""Plots of what was measured, as SVG to be put into a page."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

_SIZE = (8.0, 3.6)
_PERCENTILES = ("p50", "p90", "p99", "p99.9")
_STAGES = ("prepare", "cache", "admit", "generate", "filter")


def of(part: str, figures: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Title and SVG of each plot that a part has figures for."""
    makers: dict[str, Sequence[tuple[str, Callable[[Any, Mapping[str, Any]], bool]]]] = {
        "sweep": (
            ("Latency by offered rate", _latency),
            ("Latency by throughput", _throughput),
            ("Where the time goes, median by source of the answer", _stages),
            ("Hit ratio over time", _hit_ratio),
        ),
        "misses": (("Throughput with many callers, by round", _misses),),
        "hits": (("Throughput of one process, by round", _hits),),
        "scale": (("Latency of a miss by candidates", _candidates),),
    }
    # The sweep has a part of its own for each model of a GPU run.
    for title, draw in makers.get(part.partition(" ")[0], ()):
        figure = Figure(figsize=_SIZE, layout="constrained")
        if draw(figure.add_subplot(), figures):
            yield title, svg(figure)


def svg(figure: Any) -> str:
    """A figure as one ``<svg>`` element, the same bytes for the same figures."""
    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "requery", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def _latency(axes: Any, figures: Mapping[str, Any]) -> bool:
    steps = [step for step in figures["steps"] if step["latency_ms"]]
    for name in _PERCENTILES:
        rates = [step["rate"] for step in steps]
        axes.plot(rates, [step["latency_ms"][name] for step in steps], marker="o", label=name)
    axes.axhline(figures["deadline_ms"], color="grey", linestyle="--", label="deadline")
    if figures["knee_per_s"] is not None:
        axes.axvline(figures["knee_per_s"], color="grey", linestyle=":", label="knee")
    axes.set(xlabel="requests offered / s", ylabel="ms", xscale="log", yscale="log")
    axes.legend()
    return bool(steps)


def _throughput(axes: Any, figures: Mapping[str, Any]) -> bool:
    steps = [step for step in figures["steps"] if step["latency_ms"]]
    good = [step["goodput_per_s"] for step in steps]
    for name in ("p50", "p99"):
        axes.plot(good, [step["latency_ms"][name] for step in steps], marker="o", label=name)
    axes.set(xlabel="useful answers in time / s", ylabel="ms", yscale="log")
    axes.legend()
    return bool(steps)


def _stages(axes: Any, figures: Mapping[str, Any]) -> bool:
    sources = {s: told for s, told in figures["stages_ms"].items() if told.get("total")}
    left = dict.fromkeys(sources, 0.0)
    for stage in (*_STAGES, "the rest"):
        widths = [
            told.get(stage, 0.0)
            if stage in _STAGES
            else max(0.0, told["total"] - sum(told.get(name, 0.0) for name in _STAGES))
            for told in sources.values()
        ]
        # Hits take a hundredth of what misses do: shares of the total can be seen for both.
        shares = [
            100 * width / told["total"]
            for width, told in zip(widths, sources.values(), strict=True)
        ]
        axes.barh(list(sources), shares, left=list(left.values()), label=stage)
        left = {s: left[s] + share for s, share in zip(sources, shares, strict=True)}
    axes.set(xlabel="% of the median total")
    labels = [f"{source}: {told['total']:.2f} ms" for source, told in sources.items()]
    axes.set_yticks(range(len(labels)), labels)
    axes.legend(ncols=len(_STAGES) + 1, loc="upper center", bbox_to_anchor=(0.5, 1.2))
    return bool(sources)


def _hit_ratio(axes: Any, figures: Mapping[str, Any]) -> bool:
    points = figures["hit_ratio_over_time"]
    axes.plot([p["at_s"] for p in points], [p["hit_ratio"] for p in points], marker=".")
    axes.set(xlabel="s since the start with an empty cache", ylabel="share of hits", ylim=(0, 1))
    return bool(points)


def _misses(axes: Any, figures: Mapping[str, Any]) -> bool:
    names: list[str] = []
    for name, peer in figures["peers"].items():
        rates = [one["per_s"] for one in peer["modes"]["batch"]["rounds"]]
        if rates:
            axes.plot(rates, [len(names)] * len(rates), "o", alpha=0.6)
            names.append(name)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="requests / s", xlim=(0, None))
    axes.margins(y=0.3)
    return bool(names)


def _hits(axes: Any, figures: Mapping[str, Any]) -> bool:
    names = list(dict.fromkeys(name for one in figures["throughput"] for name in one))
    for place, name in enumerate(names):
        rates = [one[name]["per_s"] for one in figures["throughput"] if name in one]
        axes.plot(rates, [place] * len(rates), "o", alpha=0.6)
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="requests / s", xlim=(0, None))
    axes.margins(y=0.3)
    return bool(names)


def _candidates(axes: Any, figures: Mapping[str, Any]) -> bool:
    told = {int(n): one["latency_ms"] for n, one in figures["candidates"].items()}
    told = {n: latency for n, latency in told.items() if latency}
    for name in ("p50", "p90"):
        axes.plot(list(told), [one[name] for one in told.values()], marker="o", label=name)
    axes.set(xlabel="candidates", ylabel="ms", ylim=(0, None))
    axes.legend()
    return bool(told)
