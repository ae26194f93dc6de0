"""``docs/security.md``: each promise names a test, and the test is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()


def test_every_promise_is_held_by_a_test_that_exists() -> None:
    rows = PAGE.partition("## The promises and their tests")[2].partition("\n## ")[0]
    named = re.findall(
        r"^\| [^|`]+(?:`[^`]*`[^|]*)?\| `(tests/[\w/]+\.py)::(\w+)` \|$", rows, re.MULTILINE
    )
    assert len(named) == len(re.findall(r"^\| (?!promise)", rows, re.MULTILINE)) >= 20
    for path, name in named:
        text = (ROOT / path).read_text()
        assert re.search(rf"^ *(?:async )?def {name}\(", text, re.MULTILINE), f"{path}::{name}"


def test_every_metric_and_setting_that_it_names_exists() -> None:
    from service.config.settings import Settings

    for name in set(re.findall(r"REQUERY_([A-Z_]+)", PAGE)):
        assert name.lower() in Settings.model_fields, name
    source = "".join(path.read_text() for path in (ROOT / "service").rglob("*.py"))
    for metric in set(re.findall(r"\brequery_[a-z_]+(?=_total)", PAGE)):
        assert f'"{metric}"' in source, metric
