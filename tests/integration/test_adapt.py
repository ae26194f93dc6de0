"""A grocery's version: made by one command, killed on the way, continued, and served."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from model_store.store import FolderSource, Store
from service.engine.corrected import with_spelling
from service.filtering.catalogue import TermIndex
from service.filtering.filters import CandidateFilter
from service.filtering.generation import Generation
from tests.integration.conftest import Served
from tests.unit.training.adapt.shops import groceries, write

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]

ROOT = Path(__file__).parents[2]

# Ends the process, as the kernel would, when the model has answered for seven queries.
KILLED = """
import os, signal, sys
from training.adapt import trial

add = trial.Journal.add
def add_and_die(self, query, found):
    add(self, query, found)
    if len(self.found) == 7:
        os.kill(os.getpid(), signal.SIGKILL)

trial.Journal.add = add_and_die
sys.argv[0] = "requery"
if __name__ == "__main__":
    from service.cli import app
    app()
"""


def requery(folder: Path, script: Path | None = None) -> subprocess.CompletedProcess[str]:
    options: Sequence[str] = (
        "adapt", "--products", "products.csv", "--name", "grocer", "--out", "v",
        "--base-version", "sft-1", "--queries", "20", "--json",
    )  # fmt: skip
    start = [str(script)] if script else ["-m", "service.cli"]
    return subprocess.run(
        [sys.executable, *start, *options],
        capture_output=True, text=True, timeout=280, check=False, cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""},
    )  # fmt: skip


@pytest.mark.timeout(600)
async def test_adapt_killed_continued_and_served(served: Served, tmp_path: Path) -> None:
    write(tmp_path / "products.csv", groceries())
    (tmp_path / "killed.py").write_text(KILLED)
    killed = requery(tmp_path, tmp_path / "killed.py")
    assert killed.returncode == -9, killed.stderr
    assert FolderSource(tmp_path / "v").names() == []
    (journal,) = (tmp_path / "v").glob(".adapt-grocer/*/from.jsonl")
    begun = journal.read_bytes()
    assert len(begun.splitlines()) == 8  # the first is empty

    done = requery(tmp_path)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record["made"]
    assert sum(record["trial"]["queries"].values()) == 20
    # What the model had answered before the kill was not asked again.
    assert "/33 " in done.stderr
    assert sorted(path.name for path in (tmp_path / "v").iterdir()) == ["grocer", "grocer-report"]
    page = (tmp_path / "v" / "grocer-report" / "report.html").read_text()
    assert "simulated" in page
    assert "http" not in page

    version = Store([FolderSource(tmp_path / "v")], tmp_path / "cache").get("grocer")
    manifest, folder = version.manifest, version.folder(tmp_path / "cache")
    assert manifest.catalogue is not None
    # The weights are those of the version before, whose engine is there already.
    engine = with_spelling(served.engine, version, tmp_path / "cache")
    terms = TermIndex.load(folder / manifest.catalogue.index_file)
    accept = CandidateFilter(manifest.filter, fold_case=True, catalogue=terms)

    async def asked(query: str) -> list[str]:
        found = Generation.of([one async for one in engine.generate(query)])
        judged = found.verdicts(query, accept)
        return [one.text for one in accept.select(judged, min_relevance=0.0).accepted]

    assert "kombucha" in await asked("kombcha")
    assert "soft drink" in await asked("soda")
