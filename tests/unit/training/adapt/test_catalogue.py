"""Reading a shop's products: every format, and whatever can be wrong with a row."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import pytest

from tests.unit.training.adapt.shops import groceries, write
from training.adapt.catalogue import LONGEST_TITLE, read_catalogue
from training.errors import DataError


def catalogue_of(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", ["p.csv", "p.tsv", "p.json", "p.jsonl", "p.parquet"])
def test_formats_say_the_same(name: str, tmp_path: Path) -> None:
    found = read_catalogue(write(tmp_path / name, groceries()))
    assert len(found) == found.rows == 96
    assert found.titles["p0-0-0"] == "nutty valley organic peanut butter, 500 g"
    assert found.categories["p0-0-0"] == "spreads"
    assert found.brands["oatwell"] == [24, 24]
    assert found.fields == {"id", "title", "brand", "category"}
    plain = read_catalogue(write(tmp_path / "again.csv", groceries()))
    assert found.digest == plain.digest


def test_a_folder_of_compressed_parts_and_standard_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    rows = groceries()
    for part in range(2):
        plain = write(tmp_path / "part.csv", rows[part::2])
        (folder / f"part-{part}.csv.gz").write_bytes(gzip.compress(plain.read_bytes()))
    (folder / "_SUCCESS").touch()
    assert len(read_catalogue(folder)) == 96
    with (folder / "part-0.csv.gz").open("rb") as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert len(read_catalogue(Path("-"))) == 48


def test_bad_rows_are_told_with_their_lines_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_bytes(
        b'\xef\xbb\xbfSKU;Product Name;Vendor\n1;"Oat &amp; Rice Milk";Oatwell\n2;too;many;fields\n'
        b"3;;Oatwell\n1;Oat Milk again;Oatwell\n4;caf\xe9 au lait;x\n5;oat & rice MILK;None\n\n"
        b'6;"' + b"long " * 500 + b'";n/a\n'
    )
    found = read_catalogue(path)
    assert found.titles["1"] == found.titles["5"] == "oat & rice milk"
    assert list(found.titles) == ["1", "5", "6"]
    assert (found.rows, found.untitled, found.repeated, found.same_title) == (5, 1, 1, 1)
    assert found.bad.told == [
        "p.csv: line 3: has 4 fields, and the header has 3",
        "p.csv: line 6: is not UTF-8 (iconv -f WINDOWS-1252 -t UTF-8 converts a file)",
    ]
    assert found.cut == 1
    assert len(found.titles["6"]) <= LONGEST_TITLE
    assert list(found.brands) == ["oatwell"]


def test_bad_lines_of_json(tmp_path: Path) -> None:
    text = '{"name": "Oat Milk", "id": 7, "tags": [1]}\n{"name": \n[1]\n{"id": 8}\n'
    found = read_catalogue(catalogue_of(tmp_path / "p.jsonl", text))
    assert found.titles == {"7": "oat milk"}
    assert found.untitled == 1
    assert found.bad.told == ["p.jsonl: line 2: is not JSON",
                              "p.jsonl: line 3: is not a JSON object"]  # fmt: skip


def test_named_columns(tmp_path: Path) -> None:
    path = catalogue_of(tmp_path / "p.csv", "nr,bezeichnung,title\n1,Hafermilch,x\n")
    assert read_catalogue(path, {"title": "bezeichnung", "id": "nr"}).titles == {"1": "hafermilch"}
    with pytest.raises(DataError, match=r"p\.csv: there is no column 'nope' \(columns: nr"):
        read_catalogue(path, {"brand": "nope"})


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("p.csv", "nr,text\n1,x\n", r"has no column for the title \(columns: nr, text\)"),
        ("p.jsonl", '{"nr": 1}\n{"text": 2}\n', r"title \(columns: nr, text\).*--title-column"),
        ("p.csv", "id,title\n1,\n2\n", r"no product with a title \(1 rows, 1 of them bad: p.csv: "),
        ("p.parquet", "PAR1 not", "cannot be read as Parquet"),
        ("p.csv.gz", "\x1f\x8b\x00", "gzip"),
        ("none.csv", "", "no column for the title"),
    ],
)
def test_files_that_are_refused(name: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match=said):
        read_catalogue(tmp_path / name)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such file"):
        read_catalogue(tmp_path / "none.csv")
