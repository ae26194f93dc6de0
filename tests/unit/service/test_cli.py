"""The root command: what it loads, and what it says when something is not installed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import typer

from service.cli import _run

ROOT = Path(__file__).parents[3]


def requery(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, with ``code`` before it."""
    program = f"import sys\n{code}\nfrom service.cli import app\napp(prog_name='requery')\n"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


REPORT = """
import atexit
heavy = ("torch", "transformers", "vllm", "peft", "polars", "tantivy", "fastapi")
atexit.register(lambda: print("loaded:", sorted(set(heavy) & set(sys.modules)), file=sys.stderr))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["models", "--help"],
        ["models", "list"],
        ["keys", "new", "--name", "a", "--scope", "admin"],
    ],
)
def test_looking_at_models_and_making_keys_loads_nothing_heavy(arguments: list[str]) -> None:
    done = requery(REPORT, *arguments)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip().endswith("loaded: []")


def test_help_lists_the_subcommands() -> None:
    done = requery("", "--help")
    for name in ("serve", "precompute", "models", "keys", "train", "evaluate"):
        assert name in done.stdout


def test_help_of_a_subcommand_is_its_own() -> None:
    done = requery("", "models", "verify", "--help")
    assert done.returncode == 0
    assert "requery models verify" in done.stdout
    assert "--cache-dir" in done.stdout


def test_options_reach_the_subcommand_in_order(tmp_path: Path) -> None:
    done = requery("", "models", "show", "--json", "nope", "--source", str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("requery: no model version is called 'nope'")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "source",
    [
        "import no_such_library.part\ndef train(): pass",
        "def train(recipe: str = ''):\n    import no_such_library",
    ],
)
def test_a_missing_extra_is_one_line(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "commands_for_test.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "commands_for_test", raising=False)
    with pytest.raises(typer.Exit) as stopped:
        _run("train", "commands_for_test", "train", [], extra="train")
    assert stopped.value.exit_code == 1
    assert capsys.readouterr().err == (
        "requery: train needs the extra 'train': pip install 'requery-search[train]' "
        "(no_such_library is missing)\n"
    )


def test_a_broken_module_of_ours_is_not_blamed_on_an_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "commands_for_test.py").write_text("import training.no_such_module")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "commands_for_test", raising=False)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        _run("train", "commands_for_test", "train", [], extra="train")


def test_an_unknown_subcommand() -> None:
    done = requery("", "dance")
    assert done.returncode == 2
    assert "No such command 'dance'" in done.stderr
