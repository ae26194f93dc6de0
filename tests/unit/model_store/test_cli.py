"""``requery models``: what it prints, and one clear line for what goes wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from model_store.cli import app
from model_store.files import sha256_of
from model_store.manifest import RECORD, BaseSpec
from tests.support.model_versions import write_full_version, write_stub_version


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A source with the good version "two" and "one", whose base is missing."""
    root = tmp_path / "source"
    (tmp_path / "base.gguf").write_bytes(b"weights")
    base = BaseSpec(
        source=str(tmp_path / "base.gguf"),
        sha256=sha256_of(tmp_path / "base.gguf"),
        license="Apache-2.0",
    )
    write_stub_version(root / "one")
    write_stub_version(root / "two", base=base)
    return root


def run(source: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--source", str(source)], env={"COLUMNS": "200"})


def assert_one_line(result: Result, text: str) -> None:
    assert result.exit_code == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("requery: ")
    assert text in result.stderr


def named(rows: list[dict[str, object]], name: str) -> dict[str, object]:
    return next(row for row in rows if row["name"] == name)


def test_list_as_json(source: Path, tmp_path: Path) -> None:
    result = run(source, "list", "--json", "--cache-dir", str(tmp_path))
    assert result.exit_code == 0
    row = named(json.loads(result.stdout), "two")
    assert row["weights"] == "adapter"
    assert row["source"] == str(source)
    assert row["materialised"] is False


def test_list_as_a_table(source: Path) -> None:
    result = run(source, "list")
    assert result.exit_code == 0
    assert "one" in result.stdout
    assert "adapter" in result.stdout


def test_a_piped_list_is_not_cut(source: Path) -> None:
    result = CliRunner().invoke(app, ["list", "--source", str(source)])
    assert str(source) in result.stdout
    assert "\u2026" not in result.stdout


def test_a_bad_version_does_not_hide_the_others(source: Path) -> None:
    (source / "one" / "manifest.json").write_text("{")
    result = run(source, "list", "--json")
    assert result.exit_code == 0
    rows = json.loads(result.stdout)
    assert "error" in named(rows, "one")
    assert "digest" in named(rows, "two")


def test_show(source: Path) -> None:
    shown = json.loads(run(source, "show", "two", "--json").stdout)
    assert shown["name"] == "two"
    assert len(shown["digest"]) == 64
    table = run(source, "show", "two")
    assert table.exit_code == 0
    assert shown["digest"] in table.stdout
    assert "adapter_model.safetensors" in table.stdout


def test_verify_a_good_version(source: Path) -> None:
    result = run(source, "verify", "two", "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)[0]["ok"] is True


def test_verify_says_what_is_wrong_and_fails(source: Path) -> None:
    (source / "two" / "README.md").write_text("changed")
    (source / "two" / "extra.txt").write_text("x")
    result = run(source, "verify", "two")
    assert result.exit_code == 1
    assert "README.md: has 7 bytes" in result.stdout
    assert "not in the manifest: extra.txt" in result.stdout


def test_verify_checks_all_when_none_is_named(source: Path) -> None:
    result = run(source, "verify", "--json")
    assert result.exit_code == 1
    rows = json.loads(result.stdout)
    assert named(rows, "one")["ok"] is False
    assert named(rows, "two")["ok"] is True


@pytest.mark.parametrize("command", ["show", "materialise"])
def test_an_unknown_version_is_one_line(source: Path, command: str) -> None:
    for name in ("one", "two"):  # and whatever the package holds
        assert_one_line(run(source, command, "three"), name)
    assert_one_line(run(source, command, "three"), "known: ")


def test_a_missing_base_is_one_line(source: Path, tmp_path: Path) -> None:
    result = run(source, "materialise", "one", "--cache-dir", str(tmp_path / "cache"), "--json")
    assert_one_line(result, "does not exist: put it there")


def test_a_url_that_cannot_be_read_is_one_line() -> None:
    result = CliRunner().invoke(app, ["list", "--source", "nosuchscheme://x"])
    assert_one_line(result, "cannot read nosuchscheme://x")


def test_add(source: Path, tmp_path: Path) -> None:
    write_stub_version(tmp_path / "made" / "three")
    result = run(source, "add", str(tmp_path / "made" / "three"))
    assert result.exit_code == 0
    assert (source / "three" / "manifest.json").is_file()


def test_add_to_a_directory(source: Path, tmp_path: Path) -> None:
    to = tmp_path / "other"
    result = run(source, "add", str(source / "two"), "--to", str(to))
    assert result.exit_code == 0
    assert (to / "two" / "manifest.json").is_file()


def test_adding_damage_is_one_line(source: Path, tmp_path: Path) -> None:
    write_stub_version(tmp_path / "made" / "three")
    (tmp_path / "made" / "three" / "README.md").write_text("x")
    assert_one_line(run(source, "add", str(tmp_path / "made" / "three")), "README.md")


class TestPrune:
    """``requery models prune``: what is materialised and in no source any more."""

    @pytest.fixture
    def cache(self, tmp_path: Path) -> Path:
        """Materialised: a version as it is, as it was, and one that was taken away."""
        cache, place = tmp_path / "cache", tmp_path / "source"
        for name in ("full-1", "gone-1"):
            write_full_version(place / name)
            assert run(place, "materialise", name, "--cache-dir", str(cache)).exit_code == 0
        shutil.rmtree(place / "gone-1")
        (now,) = (cache / "models").glob("full-1-*[!k]")
        shutil.copytree(now, now.with_name("full-1-0123456789abcdef"))
        (cache / "models" / "somebody's notes").mkdir()
        return cache

    def folders(self, cache: Path) -> list[str]:
        return sorted(p.name.rpartition("-")[0] for p in (cache / "models").iterdir() if p.is_dir())

    def prune(self, tmp_path: Path, cache: Path, *options: str) -> Result:
        return run(tmp_path / "source", "prune", "--cache-dir", str(cache), *options)

    def test_it_lists_and_removes_nothing_unless_told(self, tmp_path: Path, cache: Path) -> None:
        result = self.prune(tmp_path, cache)
        assert result.exit_code == 0
        assert "full-1-0123456789abcdef" in result.stdout
        assert "gone-1-" in result.stdout
        assert "--yes removes them" in result.stdout
        assert self.folders(cache) == ["", "full-1", "full-1", "gone-1"]

    def test_it_removes_what_no_source_holds(self, tmp_path: Path, cache: Path) -> None:
        result = self.prune(tmp_path, cache, "--yes", "--json")
        assert result.exit_code == 0
        assert [row["removed"] for row in json.loads(result.stdout)] == [True, True]
        assert all(row["bytes"] > 1000 for row in json.loads(result.stdout))
        assert self.folders(cache) == ["", "full-1"]
        listed = run(tmp_path / "source", "list", "--json", "--cache-dir", str(cache))
        assert named(json.loads(listed.stdout), "full-1")["materialised"] is True
        assert self.prune(tmp_path, cache, "--yes").stdout == "nothing to remove\n"

    def test_of_a_version_that_cannot_be_read_nothing_goes(
        self, tmp_path: Path, cache: Path
    ) -> None:
        (tmp_path / "source" / "full-1" / "manifest.json").write_text("{")
        assert self.prune(tmp_path, cache, "--yes").exit_code == 0
        assert self.folders(cache) == ["", "full-1", "full-1"]

    def test_a_source_that_cannot_be_listed_stops_it(self, tmp_path: Path, cache: Path) -> None:
        options = ["prune", "--yes", "--cache-dir", str(cache), "--source", "nosuchscheme://x"]
        assert_one_line(CliRunner().invoke(app, options), "cannot read nosuchscheme://x")
        assert self.folders(cache) == ["", "full-1", "full-1", "gone-1"]


def test_materialise_prints_the_folder(tmp_path: Path) -> None:
    write_full_version(tmp_path / "source" / "full-1")
    cache = str(tmp_path / "cache")
    result = run(tmp_path / "source", "materialise", "full-1", "--cache-dir", cache)
    assert result.exit_code == 0
    assert (Path(result.stdout.strip()) / RECORD).is_file()
    listed = run(tmp_path / "source", "list", "--json", "--cache-dir", cache)
    assert named(json.loads(listed.stdout), "full-1")["materialised"] is True
