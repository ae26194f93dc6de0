"""``docs/console.md``: its pictures are there, are pictures, and are all that is in the folder."""

from __future__ import annotations

import re
from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def test_every_picture_is_there_and_every_one_is_used() -> None:
    named = set(
        re.findall(r"\]\((images/console-[\w-]+\.png)\)", (DOCS / "console.md").read_text())
    )
    there = {f"images/{path.name}" for path in (DOCS / "images").glob("console-*.png")}
    assert named == there
    assert len(named) == 6
    for name in named:
        assert (DOCS / name).read_bytes().startswith(b"\x89PNG\r\n\x1a\n")


def test_the_setting_that_it_names_exists() -> None:
    from service.config.settings import Settings

    for name in re.findall(r"REQUERY_([A-Z_]+)", (DOCS / "console.md").read_text()):
        assert name in {"ADMIN_KEY", "API_KEYS_FILE", "CONSOLE"}
        assert name.lower() in Settings.model_fields
