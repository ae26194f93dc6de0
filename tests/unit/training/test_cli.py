"""What a person sees on the command line: one line and an exit code, never a stack trace."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import typer
import yaml
from typer.testing import CliRunner

from tests.unit.training.worlds import make_tables, shop_tables
from training import cli

SHIPPED = Path(__file__).parents[3] / "training" / "recipes" / "sft-1.yaml"


def invoke(command: str, *arguments: str | Path) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(getattr(cli, command))
    result = CliRunner().invoke(app, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stderr


def one_line(result: tuple[int, str]) -> str:
    code, text = result
    # Progress bars may stand before the message, never after it.
    assert code == 1
    assert text.endswith("\n")
    return text.splitlines()[-1]


def recipe(folder: Path, **changes: object) -> Path:
    content = yaml.safe_load(SHIPPED.read_text(encoding="utf-8")) | changes
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


class TestTrain:
    def test_unknown_recipe(self, tmp_path: Path) -> None:
        line = one_line(invoke("train", "--recipe", tmp_path / "none.yaml"))
        expected = f"requery train: cannot read the recipe {tmp_path}/none.yaml: "
        assert line == expected + "No such file or directory"

    def test_wrong_field(self, tmp_path: Path) -> None:
        line = one_line(invoke("train", "--recipe", recipe(tmp_path, sead=3)))
        assert "recipe.yaml: sead: " in line

    def test_broken_yaml_is_reported_in_one_line(self, tmp_path: Path) -> None:
        (tmp_path / "recipe.yaml").write_text("a: [\nb: 1")
        code, text = invoke("train", "--recipe", tmp_path / "recipe.yaml")
        assert code == 1
        assert text.count("\n") == 1
        assert "is not YAML" in text

    def test_missing_data_folder(self, tmp_path: Path) -> None:
        line = one_line(
            invoke("train", "--recipe", SHIPPED, "--run", tmp_path / "run", "--data",
                   tmp_path / "none")
        )  # fmt: skip
        assert "no data folder at" in line
        assert "REQUERY_DATA" in line

    def test_missing_data_file(self, tmp_path: Path) -> None:
        line = one_line(
            invoke("train", "--recipe", SHIPPED, "--run", tmp_path / "run", "--data", tmp_path)
        )
        assert "home_depot/train.csv not found; get train.csv from Kaggle's" in line

    def test_an_empty_fold(self, tmp_path: Path) -> None:
        make_tables({"a": "x"}, {"x": {"a": 3.0}}).save(tmp_path / "data")
        path = recipe(tmp_path, data={"source": "tables"})
        line = one_line(
            invoke("train", "--recipe", path, "--run", tmp_path / "run", "--data",
                   tmp_path / "data")
        )  # fmt: skip
        assert "fold has no query with a relevant product" in line

    def test_a_base_that_is_not_there(self, tmp_path: Path) -> None:
        shop_tables().save(tmp_path / "data")
        base = {"source": str(tmp_path / "none.gguf"), "sha256": "0" * 64, "license": "x"}
        path = recipe(tmp_path, data={"source": "tables"}, base=base)
        line = one_line(
            invoke("train", "--recipe", path, "--run", tmp_path / "run", "--data",
                   tmp_path / "data")
        )  # fmt: skip
        assert "none.gguf does not exist" in line

    def test_the_folder_of_another_run(self, tmp_path: Path) -> None:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "recipe.json").write_text("{}")
        line = one_line(invoke("train", "--recipe", SHIPPED, "--run", tmp_path / "run"))
        assert "holds a run of another recipe" in line

    def test_a_run_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        line = one_line(invoke("train", "--recipe", SHIPPED, "--run", tmp_path / "file" / "run"))
        assert line.endswith("Not a directory")


class TestJson:
    """``--json``: standard output holds the figures of the file and nothing else."""

    @pytest.fixture
    def stub(self, monkeypatch: pytest.MonkeyPatch) -> None:
        bench = MagicMock()
        bench.exam.name = "held-out"
        bench.measure.return_value.record.return_value = {"version": "a-1", "relevance": 0.5}
        monkeypatch.setattr(cli, "_bench", lambda *_args, **_options: ([MagicMock()], bench))

    def printed(self, command: str, *arguments: str | Path) -> Any:
        app = typer.Typer()
        app.command()(getattr(cli, command))
        done = CliRunner().invoke(app, [*map(str, arguments), "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    @pytest.mark.usefixtures("stub")
    def test_evaluate(self, tmp_path: Path) -> None:
        printed = self.printed("evaluate", "a-1", "--out", tmp_path / "figures.json")
        assert printed == json.loads((tmp_path / "figures.json").read_text())
        assert printed["relevance"] == 0.5

    @pytest.mark.usefixtures("stub")
    def test_compare(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from training.evaluation import baselines, compare

        result = {"ways": [{"name": "the query alone"}]}
        monkeypatch.setattr(baselines, "baselines", lambda *_: [])
        returned: dict[str, Any] = {
            "baseline_ways": [], "way_of": None, "as_markdown": "", "plot": None, "record": result,
        }  # fmt: skip
        for name, value in returned.items():
            monkeypatch.setattr(compare, name, MagicMock(return_value=value))
        assert self.printed("compare", "a-1", "--out", tmp_path) == result

    def test_ab(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from training.ab import experiment

        monkeypatch.setattr(experiment, "experiment", lambda *_args, **_options: {"arms": 2})
        assert self.printed("ab") == {"arms": 2}


class TestEvaluate:
    def test_unknown_version(self, tmp_path: Path) -> None:
        line = one_line(invoke("evaluate", "no-such-1", "--data", tmp_path))
        assert "no model version is called 'no-such-1'" in line

    def test_unknown_fold(self) -> None:
        line = one_line(invoke("evaluate", "sft-1", "--fold", "training"))
        assert line == "requery evaluate: --fold is held-out or development, not 'training'"

    @pytest.mark.parametrize(
        ("record", "source"),
        [
            ({}, "home_depot"),
            ({"recipe": {"data": {"source": "tables"}}}, "tables"),
            ({"recipe": None}, "home_depot"),
        ],
    )
    def test_a_version_is_measured_on_the_source_that_it_was_trained_on(
        self, record: dict[str, object], source: str
    ) -> None:
        assert cli._source_of(record) == source


def requery(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(SHIPPED.parents[2])},
    )


def test_the_real_command(tmp_path: Path) -> None:
    done = requery("train", "--recipe", "none.yaml", folder=tmp_path)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == (
        "requery train: cannot read the recipe none.yaml: No such file or directory\n"
    )
    done = requery("evaluate", "sft-1", "--fold", "x", folder=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("requery evaluate: --fold is held-out or development")
    assert not list(tmp_path.iterdir()), "nothing is left behind"


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_help_names_every_option(command: str, tmp_path: Path) -> None:
    done = requery(command, "--help", folder=tmp_path)
    assert done.returncode == 0
    options = {"train": ("--recipe", "--run", "--data", "--out", "--checkpoint-every"),
               "evaluate": ("--source", "--data", "--fold", "--out", "--drawn",
                                "--against")}  # fmt: skip
    assert all(option in done.stdout for option in options[command])
