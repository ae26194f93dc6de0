"""The curated pairs: read, split without leaks, and lent to each other."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.data.curated_pairs import (
    COLUMNS,
    CURATED,
    CuratedQuery,
    Rewrite,
    read_curated,
    split_curated,
    swapped,
)
from training.data.folds import DEVELOPMENT, HELD_OUT, fold_of
from training.errors import DataError

HEADER = "\t".join(COLUMNS)


def query(text: str, *right: str, department: str = "garden", wrong: str = "") -> CuratedQuery:
    rewrites = tuple(Rewrite(one, "synonym") for one in right)
    return CuratedQuery(text, department, rewrites, (Rewrite(wrong, "type"),) if wrong else ())


def in_fold(fold: int, start: int = 0) -> str:
    """A made-up query of a fold."""
    return next(text for n in range(start, 999) if fold_of(text := f"thing {n} wanted") == fold)


def test_a_file_is_read_in_its_order_and_in_normal_form(tmp_path: Path) -> None:
    lines = [
        HEADER,
        "Garden  Hoze\tgarden hose\t1\tspelling",
        "Garden  Hoze\tgarden hose\t1\tspelling",
        'garden hoze\t"water" hose\t1\tsynonym',
        "garden hoze\tgarden home\t0\twrong_correction",
        "garden hoze\tgarden hoze\t1\tspelling",
    ]
    (tmp_path / "garden.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (read,) = read_curated(tmp_path)
    assert read.query == "garden hoze"
    assert read.department == "garden"
    assert [one.text for one in read.right] == ["garden hose", "garden hose", '"water" hose']
    assert read.wrong == (Rewrite("garden home", "wrong_correction"),)
    assert read.corrected == "garden hose"


def test_a_query_belongs_to_the_first_file_that_has_it(tmp_path: Path) -> None:
    for name, rewrite in (("a", "couch"), ("b", "settee")):
        (tmp_path / f"{name}.tsv").write_text(f"{HEADER}\nsofa\t{rewrite}\t1\tsynonym\n")
    (read,) = read_curated(tmp_path)
    assert (read.department, [one.text for one in read.right]) == ("a", ["couch"])
    assert read.corrected == "sofa"


def test_rewrites_that_were_read_are_added_to_their_query(tmp_path: Path) -> None:
    for name, lines in (
        ("read", "sofa\tcouch\t0\tread\nsofa\tsofa set\t0\tread"),
        ("sofas", "sofa\tcouch\t1\tsynonym"),
    ):
        (tmp_path / f"{name}.tsv").write_text(f"{HEADER}\n{lines}\n")
    (query,) = read_curated(tmp_path)
    assert query.department == "sofas"
    assert query.right == (Rewrite("couch", "synonym"),)
    assert query.wrong == (Rewrite("sofa set", "read"),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("query\trewrite\n", "header"),
        (f"{HEADER}\nsofa\tcouch\t2\tsynonym\n", "line 2"),
        (f"{HEADER}\nsofa\tcouch\n", "line 2"),
        (f"{HEADER}\nsofa\tcouch\t1\tsynonym\nsofa\t \t1\tsynonym\n", "line 3"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.tsv").write_text(text)
    with pytest.raises(DataError, match=message):
        read_curated(tmp_path)


def test_a_folder_without_files_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no curated pairs"):
        read_curated(tmp_path)


def test_training_queries_are_no_variants_of_what_is_kept_out() -> None:
    development, held_out = in_fold(DEVELOPMENT), in_fold(HELD_OUT)
    plural = next(t for word in ("things", "thingses") if fold_of(
        t := development.replace("thing", word)) not in (DEVELOPMENT, HELD_OUT))  # fmt: skip
    fine, elsewhere = in_fold(5), in_fold(6)
    split = split_curated(
        [query(t) for t in (development, held_out, plural, fine, elsewhere)], [elsewhere]
    )
    assert [one.query for one in split.development] == [development]
    assert [one.query for one in split.train] == [fine]
    assert len(split.protected) == 3


def test_swapped_rewrites_come_from_queries_that_have_nothing_in_common() -> None:
    sofa = query("sofa", "couch")
    couch = query("couch", "sofa")
    loose = query("red sofa", "crimson settee")
    lamp = query("floor lamp", "standing light")
    other = query("laptop", "notebook", department="electronics")
    nonsense = query("xqzv", wrong="sofa")
    found = swapped([sofa, couch, loose, lamp, other, nonsense], 4, seed=1)
    assert found["sofa"] == ["standing light"]
    assert set(found["floor lamp"]) == {"couch", "sofa", "crimson settee"}
    assert found["laptop"] == []
    assert set(found["xqzv"]) <= {"couch", "sofa", "crimson settee", "standing light"}


def test_near_swaps_share_a_word() -> None:
    queries = [
        query("garden hose", "water hose"),
        query("vacuum hose", "hoover pipe"),
        query("floor lamp", "standing light"),
    ]
    found = swapped(queries, 2, seed=1, near=True)
    assert found == {
        "garden hose": ["hoover pipe"],
        "vacuum hose": ["water hose"],
        "floor lamp": [],
    }


def test_the_projects_own_pairs_can_be_read() -> None:
    queries = read_curated(CURATED)
    assert len(queries) == 5529
    assert all(q.right or q.wrong for q in queries)
    assert HELD_OUT not in {fold_of(q.query) for q in queries}
