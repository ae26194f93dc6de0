"""Programs of Prometheus.

Without them tests that need one are skipped; with ``REQUERY_REQUIRE_PROMETHEUS=1`` they fail.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.deploy.prometheus import NAMES

# Read before the tests, which see no REQUERY_* variable of whoever runs them.
_REQUIRED = os.environ.get("REQUERY_REQUIRE_PROMETHEUS") == "1"

Promtool = Callable[..., str]


@pytest.fixture(scope="session")
def programs() -> dict[str, Path]:
    """Where ``prometheus`` and ``promtool`` are."""
    found = {name: shutil.which(name) for name in NAMES}
    if not all(found.values()):
        (pytest.fail if _REQUIRED else pytest.skip)(
            "no prometheus and promtool on the PATH: apt-get install prometheus"
        )
    return {name: Path(path) for name, path in found.items() if path}


@pytest.fixture
def promtool(programs: dict[str, Path]) -> Promtool:
    """Runs it, and gives what it says; its failure is the test's."""

    def run(*arguments: str | Path, given: str | None = None) -> str:
        done = subprocess.run(
            [str(programs["promtool"]), *map(str, arguments)],
            input=given, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run
