"""What a part of the benchmark found, for machines and for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

Say = Callable[[str], None]
"""Tells whoever waits what is being done."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    Attributes:
        what: was measured.
        figure: with its unit and spread.
        ratio: the same as a ratio, and to what; empty if there is none.
        note: what limits it; starts with "INVALID" where it must not be quoted.
    """

    what: str
    figure: str
    ratio: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Section:
    """One part of the benchmark.

    Attributes:
        name: of the part.
        figures: everything measured, for JSON.
        rows: the lines for people.
    """

    name: str
    figures: Mapping[str, Any]
    rows: tuple[Row, ...] = field(default=())

    def content(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "part": self.name,
            "rows": [asdict(row) for row in self.rows],
            "figures": dict(self.figures),
        }


def table(sections: Iterable[Section]) -> str:
    """All rows as a Markdown table."""
    lines = ["| part | what | figure | ratio | note |", "|---|---|---|---|---|"]
    lines += [
        f"| {' | '.join(map(_cell, (s.name, row.what, row.figure, row.ratio, row.note)))} |"
        for s in sections
        for row in s.rows
    ]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """On one line, and no end of a cell: what a peer printed may be anything."""
    return " ".join(text.split()).replace("|", "\\|")
