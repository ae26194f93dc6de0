"""``requery adapt`` as a user runs it, without a model: the version that it writes."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from model_store.store import FolderSource, Store, open_store
from service.engine.spelling import Corrector
from tests.unit.training.adapt.shops import groceries, write
from training.adapt.command import adapt


def invoke(products: Path, out: Path, *more: str, name: str = "shop") -> tuple[int, str, str]:
    app = typer.Typer()
    app.command()(adapt)
    arguments = ["--products", str(products), "--name", name, "--out", str(out), *more]
    result = CliRunner().invoke(app, arguments)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def record_of(products: Path, out: Path, *more: str) -> dict[str, Any]:
    code, text, errors = invoke(products, out, "--json", "--quick", *more)
    assert code == 0, errors
    record: dict[str, Any] = json.loads(text)
    return record


@pytest.fixture
def products(tmp_path: Path) -> Path:
    return write(tmp_path / "products.csv", groceries())


def test_a_version_with_the_shops_words_pairs_and_brands(products: Path, tmp_path: Path) -> None:
    record = record_of(products, tmp_path / "v")
    store = Store([FolderSource(tmp_path / "v")], tmp_path / "cache")
    assert store.verify("shop").ok
    version, base = store.get("shop"), open_store().get("general-1")
    assert version.digest == record["digest"] != base.digest
    weights = "adapter_model.safetensors"
    assert version.manifest.files[weights] == base.manifest.files[weights]
    folder = version.folder(tmp_path / "cache")
    brands = (folder / "brands.txt").read_text().splitlines()
    assert {"nutty valley", "fizzo", "20th century fox"} <= set(brands)
    assert version.manifest.spelling is not None
    corrector = Corrector.of(version.manifest.spelling, folder)
    assert corrector("kombcha fizzo") == "kombucha fizzo"
    assert corrector("avacado oil") == "avocado oil"
    assert record["catalogue"]["products"] == 96
    assert [w for w in record["warnings"] if w.startswith("96 products: every search")]


def test_again_with_the_same_products_changes_nothing_and_others_are_refused(
    products: Path, tmp_path: Path
) -> None:
    first = record_of(products, tmp_path / "v")
    manifest = (tmp_path / "v" / "shop" / "manifest.json").read_bytes()
    again = record_of(products, tmp_path / "v")
    assert (first["made"], again["made"]) == (True, False)
    assert (tmp_path / "v" / "shop" / "manifest.json").read_bytes() == manifest
    write(products, groceries()[1:])
    code, _, said = invoke(products, tmp_path / "v", "--quick")
    assert code == 1
    assert "made of other products" in said
    assert len(said.splitlines()[-1]) < 300


@pytest.mark.parametrize("at", ["copy", "end"])
def test_a_full_disk_is_one_line_and_leaves_no_version(
    at: str, products: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    place = "shutil.copyfile" if at == "copy" else "model_store.files.sync_tree"
    with monkeypatch.context() as patch:
        patch.setattr(place, full)
        code, _, said = invoke(products, tmp_path / "v", "--quick")
    assert code == 1
    assert "requery adapt: no space left to write in" in said.splitlines()[-1]
    assert FolderSource(tmp_path / "v").names() == []
    assert record_of(products, tmp_path / "v")["made"]


@pytest.mark.parametrize(
    ("titles", "known"),
    [
        (["Zimtsterne mit Mandeln"] * 3, "zimtsterne"),
        (["Овсяное молоко"], "овсяное"),
        (["x" * 3000 + " oat"], None),
        (["7", "oat milk"], "oat"),
    ],
)
def test_odd_shops(titles: list[str], known: str | None, tmp_path: Path) -> None:
    rows = [{"id": i, "title": title} for i, title in enumerate(titles)]
    record = record_of(write(tmp_path / "p.jsonl", rows), tmp_path / "v")
    assert "no column of brands" in " ".join(record["warnings"])
    words = (tmp_path / "v" / "shop" / "words.txt").read_text(encoding="utf-8").split()
    assert known is None or known in words


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--name", "My Shop"], "--name 'My Shop': a version's name has lower-case letters"),
        (["--base-version", "nope"], "no model version is called 'nope'"),
        (["--format", "xml"], "--format is one of parquet, csv"),
    ],
)
def test_wrong_options(options: list[str], said: str, products: Path, tmp_path: Path) -> None:
    code, _, text = invoke(products, tmp_path / "v", "--quick", *options)
    assert code in (1, 2)
    assert said in text
