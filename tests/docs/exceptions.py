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
_DOCKER = "docker run --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges \\"
EXCEPTIONS: dict[tuple[str, str], Reason] = {
    ("docs/architecture.md", "QUERY steele stake REWRITE steel stake RELEVANT"): _SEQUENCE,
    ("docs/training.md", "QUERY steele stake REWRITE steel stake RELEVANT"): _SEQUENCE,
    ("docs/training.md", "from pathlib import Path"): Reason(
        "reads files that the reader brings", "tests/unit/training/test_docs.py"
    ),
    ("docs/security.md", _DOCKER): Reason(
        "needs an image, which is not built where tests run",
        "tests/integration/test_read_only.py",
    ),
}
"""By page and first line of the block."""
