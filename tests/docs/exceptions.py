"""Blocks that no test here runs, each with the reason."""

from __future__ import annotations

from typing import NamedTuple


class Reason(NamedTuple):
    """Why a block is not checked, and the test that checks it in another way, if there is one."""

    reason: str
    held_by: str | None = None


_SEQUENCE = Reason(
    "the sequence that the model is trained on and asked with",
    "tests/unit/model_store/test_prompt.py",
)
EXCEPTIONS: dict[tuple[str, str], Reason] = {
    ("docs/architecture.md", "QUERY steele stake REWRITE steel stake RELEVANT"): _SEQUENCE,
    ("docs/training.md", "QUERY steele stake REWRITE steel stake RELEVANT"): _SEQUENCE,
    ("docs/training.md", "from pathlib import Path"): Reason(
        "reads files that the reader brings", "tests/unit/training/test_docs.py"
    ),
}
"""By page and first line of the block."""
