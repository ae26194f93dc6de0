"""What scripts/setup.sh does before it installs anything."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """As much of the project as the script reads."""
    for name in ("scripts/setup.sh", "pyproject.toml", "requirements/cpu.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def set_up(clone: Path, *, free_mb: int, python: str = sys.executable) -> tuple[int, str]:
    """Exit status and complaints of ``setup.sh serve`` on a disk with that much room."""
    commands = clone / "commands"
    commands.mkdir()
    report = f"Filesystem 1M-blocks Used Available Use% Mounted\n/dev/x 9 9 {free_mb} 9% /"
    (commands / "df").write_text(f"#!/bin/sh\necho '{report}'\n")
    (commands / "df").chmod(0o755)
    done = subprocess.run(
        [str(clone / "scripts" / "setup.sh"), "serve"],
        env={
            "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
            "PYTHON": python,
            "REQUERY_DEVICE": "cpu",
            # Nothing may be fetched, whatever the script comes to.
            "PIP_NO_INDEX": "1",
            "PIP_CONFIG_FILE": os.devnull,
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    return done.returncode, done.stderr


def test_a_full_disk_is_told_before_anything_is_installed(clone: Path) -> None:
    status, said = set_up(clone, free_mb=120)
    assert status == 1
    assert "installing needs about" in said
    assert "120 MB are free" in said
    assert not (clone / ".venv" / "lib").exists()


def test_an_environment_that_is_there_may_be_brought_up_to_date_on_little_room(clone: Path) -> None:
    (clone / ".venv" / "lib").mkdir(parents=True)
    status, said = set_up(clone, free_mb=120, python="no-such-python")
    assert status == 1
    assert "requery needs Python 3.11" in said


def test_another_python_is_refused_by_name(clone: Path) -> None:
    old = clone / "python3.9"
    old.write_text("#!/bin/sh\necho 3.9\n")
    old.chmod(0o755)
    status, said = set_up(clone, free_mb=99_999, python=str(old))
    assert status == 1
    assert "is 3.9" in said
