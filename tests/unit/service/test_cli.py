"""The root command: what it loads, and what it says when something is not installed."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from service.cli import _TARGETS, _command, _run

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


SHELLS = {"bash": "list\n", "zsh": '"list":"List all', "fish": "list\tList all"}


@pytest.mark.parametrize("shell", SHELLS)
def test_commands_of_subcommands_are_completed(
    shell: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("_REQUERY_COMPLETE", f"source_{shell}")
    script = requery("").stdout
    if path := shutil.which(shell):
        (tmp_path / "script").write_text(script)
        subprocess.run([path, "-n", tmp_path / "script"], check=True, timeout=60)
    assert f"complete_{shell}" in script
    monkeypatch.setenv("_REQUERY_COMPLETE", f"complete_{shell}")
    for name in ("COMP_WORDS", "_TYPER_COMPLETE_ARGS"):
        monkeypatch.setenv(name, "requery models l")
    monkeypatch.setenv("COMP_CWORD", "2")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    assert SHELLS[shell] in requery("").stdout


def test_each_line_that_fish_gets_is_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("_REQUERY_COMPLETE", "complete_fish")
    monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    monkeypatch.setenv("_TYPER_COMPLETE_ARGS", "requery precompute --")
    lines = requery("").stdout.splitlines()
    assert len(lines) > 10
    assert [line for line in lines if not line.startswith("--")] == []


def test_bash_completes_options_of_subcommands(tmp_path: Path) -> None:
    program = tmp_path / "requery"
    code = "from service.cli import app; app(prog_name='requery')"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}" "$@"\n')
    program.chmod(0o755)
    script = f"""
        source <(_REQUERY_COMPLETE=source_bash {program})
        COMP_WORDS=(requery models list --js) COMP_CWORD=3
        _requery_completion {program}
        echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["--json"], done.stderr


COMMANDS = [name for name in _TARGETS if name not in ("models", "keys")]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_all_of_every_text(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("typer.rich_utils.MAX_WIDTH", 1000)
    command = _command(*_TARGETS[name])
    shown = " ".join(CliRunner().invoke(_typer(name), ["--help"]).stdout.split())
    for parameter in command.params:
        text = " ".join((getattr(parameter, "help", None) or "").split())
        assert text in shown


def _typer(name: str) -> typer.Typer:
    module, attribute = _TARGETS[name]
    target = typer.Typer()
    target.command()(getattr(import_module(module), attribute))
    return target
