"""One page with everything: the table and plots, in a single file that needs no other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from pathlib import Path
from typing import Any

import orjson

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
table { border-collapse: collapse; width: 100% }
td, th { border: 1px solid #ccc; padding: .3rem .5rem; text-align: left; vertical-align: top }
tr.invalid { color: #a00 }
figure { margin: 1.5rem 0 }
svg { max-width: 100%; height: auto }
"""


def write(figures: Path) -> Path:
    """The page of a JSON file of figures, beside it; its path."""
    target = figures.with_suffix(".html")
    target.write_text(page(orjson.loads(figures.read_bytes())), encoding="utf-8")
    return target


def page(content: Mapping[str, Any]) -> str:
    """The page of one run."""
    head = {k: v for k, v in content.items() if k != "parts"}
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><meta charset="utf-8"><title>Requery: performance</title>',
            f"<style>{_STYLE}</style>",
            "<h1>Requery: performance</h1>",
            "<p>Figures of one run on one machine. Ratios of the same run say more than times.</p>",
            f"<pre>{escape(orjson.dumps(head, option=orjson.OPT_INDENT_2).decode())}</pre>",
            *_parts(content.get("parts", ())),
        ]
    )


def _parts(parts: list[dict[str, Any]]) -> Iterator[str]:
    for part in parts:
        yield f"<h2>{escape(part['part'])}</h2>"
        yield "<table><tr><th>what<th>figure<th>ratio<th>note</tr>"
        for row in part["rows"]:
            kind = ' class="invalid"' if row["note"].startswith("INVALID") else ""
            cells = "".join(f"<td>{escape(row[k])}" for k in ("what", "figure", "ratio", "note"))
            yield f"<tr{kind}>{cells}</tr>"
        yield "</table>"
        try:
            from loadtests.bench import plots
        except ModuleNotFoundError:  # an installation that only serves
            yield "<p>No plots: matplotlib is not installed.</p>"
            continue
        for title, drawing in plots.of(part["part"], part["figures"]):
            yield f"<figure><figcaption>{escape(title)}</figcaption>{drawing}</figure>"
