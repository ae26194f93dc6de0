"""Query logs as people have them, and what is said about those that cannot be read."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from service.precompute.errors import PrecomputeError
from service.precompute.plan import Plan
from service.precompute.readers import read_counts

WANTED = {"steele stake": 3.0, '2" pipe, black': 1.0}


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def parquet(path: Path, **columns: list[Any]) -> Path:
    import polars as pl

    pl.DataFrame(columns).write_parquet(path)
    return path


FILES = {
    "q.csv": 'Search Term,Searches\nsteele stake,2\n"2"" pipe, black",1\nsteele stake,1\n',
    "bom.csv": '\ufeffquery,count\r\nsteele stake,3\r\n\r\n"2"" pipe, black",1.0\r\n',
    "q.tsv": 'count\tother\tquery\n3\tx\tsteele stake\n1\t\t2" pipe, black\n',
    "q.jsonl": '{"query": "steele stake", "cnt": 3}\n\n{"cnt": "1", "query": "2\\" pipe, black"}\n',
    "q.log": '      3 steele stake\n      1 2" pipe, black \n',
}


@pytest.mark.parametrize(("name", "content"), FILES.items(), ids=FILES.keys())
def test_each_format_is_known_by_its_name(tmp_path: Path, name: str, content: str) -> None:
    assert read_counts(write(tmp_path / name, content)).counts == WANTED


BLANK = {
    "q.csv": "query,count\n,2\na b,2\n",
    "q.log": "      2 \n      2 a b\n",  # printf 'a b\n\na b\n\n' | sort | uniq -c
    "bare.log": "2\n\n2 a b\n",
    "q.jsonl": '{"query": null, "count": 2}\n{"query": "a b", "count": 2}\n',
    "missing.jsonl": '{"query": "a b", "count": 2}\n{"count": 2}\n',
    "null.jsonl": 'null\nnull\n{"query": "a b", "count": 2}\n',
}


@pytest.mark.parametrize(("name", "content"), BLANK.items(), ids=BLANK.keys())
def test_rows_without_a_query_are_skipped_and_counted(
    tmp_path: Path, name: str, content: str
) -> None:
    counts = read_counts(write(tmp_path / name, content)).counts
    assert counts == {"": 2.0, "a b": 2.0}
    plan = Plan.of(counts, lambda raw: raw or None)
    assert (plan.queries, plan.total, plan.blank) == (("a b",), 4.0, 2.0)


@pytest.mark.parametrize("name", ["q.csv", "q.tsv", "q.jsonl", "q.log"])
def test_a_byte_order_mark_is_no_part_of_a_query(tmp_path: Path, name: str) -> None:
    content = FILES[name]
    assert read_counts(write(tmp_path / name, "\ufeff" + content)).counts == WANTED


def test_files_with_a_byte_order_mark_each_put_together(tmp_path: Path) -> None:
    line = '\ufeff{"query": "a"}\n'
    assert read_counts(write(tmp_path / "q.jsonl", line * 2)).counts == {"a": 2.0}


@pytest.mark.parametrize("name", ["q.csv", "q.tsv", "q.jsonl", "q.log"])
def test_a_byte_that_is_not_utf_8_has_its_line(tmp_path: Path, name: str) -> None:
    start = {"q.jsonl": b"", "q.log": b""}.get(name, b"query\n\n")
    line = {"q.jsonl": b'{"query": "%s"}', "q.log": b"1 %s"}.get(name, b"%s")
    lines = [start, *(line % b"caf\xc3\xa9" + b"\n" for _ in range(2000)), line % b"caf\xe9"]
    at = 2001 + start.count(b"\n")
    with pytest.raises(PrecomputeError, match=rf"line {at} is not UTF-8 \(byte 0xe9\); convert"):
        read_counts(write(tmp_path / name, b"".join(lines)))


@pytest.mark.parametrize(
    "content",
    [
        'query;count\nsteele stake;3\n"2"" pipe, black";1\n',
        'count\tquery\n3\tsteele stake\n1\t"2"" pipe, black"\n',
        'sep=;\r\nquery;count\r\nsteele stake;3\r\n"2"" pipe, black";1\r\n',
        'sep=,\nquery,count\nsteele stake,3\n"2"" pipe, black",1\n',
        '\ufeffsep=^\n\nquery^count\nsteele stake^3\n"2"" pipe, black"^1\n',
        'id|search term|searches\n1|steele stake|3\n2|"2"" pipe, black"|1\n',
    ],
)
def test_the_delimiter_is_found(tmp_path: Path, content: str) -> None:
    assert read_counts(write(tmp_path / "q.csv", content)).counts == WANTED


@pytest.mark.parametrize("start", ["", "sep=,\n"])
def test_the_delimiter_is_given(tmp_path: Path, start: str) -> None:
    path = write(tmp_path / "q.csv", f'{start}"query"~count,~a;b\nx|y~2~0\n')
    assert read_counts(path, delimiter="~", count_column="count,").counts == {"x|y": 2}


def test_lines_are_counted_with_the_one_that_names_the_delimiter(tmp_path: Path) -> None:
    path = write(tmp_path / "q.csv", "sep=;\nquery;count\na;1\nb\n")
    with pytest.raises(PrecomputeError, match="line 4 has 1 fields"):
        read_counts(path)


def test_the_delimiter_goes_with_the_column_that_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "q.csv", "typed;sum\na;2\n")
    assert read_counts(path, query_column="typed", count_column="sum").counts == {"a": 2}


def test_a_folder_of_parquet_parts_as_spark_writes_it(tmp_path: Path) -> None:
    folder = tmp_path / "q.parquet"
    (folder / "day=1").mkdir(parents=True)
    parquet(folder / "part-00000-a.snappy.parquet", query=["steele stake"], count=[1])
    parquet(folder / "day=1" / "part-00001-a.parquet", query=[*WANTED], count=[2, 1])
    write(folder / "_SUCCESS", "")
    write(folder / ".part-00000-a.snappy.parquet.crc", b"crc\xff")
    (folder / "_temporary").mkdir()
    write(folder / "_temporary" / "part-00002.parquet", "half")
    assert read_counts(folder).counts == WANTED


@pytest.mark.parametrize("name", FILES)
def test_a_folder_of_compressed_parts(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    write(folder / "_SUCCESS", "")
    for part in ("part-0", "part-1"):
        write(folder / f"{part}-{name}.gz", gzip.compress(FILES[name].encode()))
    assert read_counts(folder).counts == {query: 2 * count for query, count in WANTED.items()}


def test_parts_have_the_columns_of_the_first(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "query,count\na,1\n")
    write(tmp_path / "b.csv", "query,frequency\na,1\n")
    with pytest.raises(PrecomputeError, match=r"b\.csv: has no column count"):
        read_counts(tmp_path)


def test_compressed_files_are_known_by_content(tmp_path: Path) -> None:
    for name in ("q.gz", "q.csv.gz", "q.csv", "q"):
        content = gzip.compress(FILES["q.csv"].encode())
        assert read_counts(write(tmp_path / name, content)).counts == WANTED
        with pytest.raises(PrecomputeError, match="damaged gzip"):
            read_counts(write(tmp_path / name, content[:-9]))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["q.csv", "bom.csv", "q.jsonl", "q.log", "q.parquet"])
def test_pipes_are_known_by_content(tmp_path: Path, name: str, *, packed: bool) -> None:
    if name in FILES:
        content = FILES[name].encode()
    else:
        path = parquet(tmp_path / name, query=[*WANTED], count=[*WANTED.values()])
        content = path.read_bytes()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = Thread(target=pipe.write_bytes, args=(gzip.compress(content) if packed else content,))
    writer.start()
    assert read_counts(pipe).counts == WANTED
    writer.join()


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_standard_input(name: str) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from service.precompute.readers import read_counts\n"
        "print(dict(read_counts(Path(sys.argv[1]), kind='tsv').counts))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, name], input=FILES["q.tsv"], capture_output=True, text=True,
        check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.strip() == str(WANTED)


def test_parquet_is_read(tmp_path: Path) -> None:
    path = parquet(
        tmp_path / "q.parquet",
        query=["steele stake", '2" pipe, black', "steele stake", None],
        frequency=[1, 1, 2, 5],
        other=[1, 2, 3, 4],
    )
    assert read_counts(path).counts == WANTED | {"": 5.0}


def test_without_a_count_each_row_is_one_search(tmp_path: Path) -> None:
    path = write(tmp_path / "q.csv", "user,query\n1,a\n2,a\n3,b\n")
    assert read_counts(path).counts == {"a": 2, "b": 1}
    assert read_counts(parquet(tmp_path / "q.pq", query=["a", "b", "a"])).counts == {"a": 2, "b": 1}


@pytest.mark.parametrize("results", ["hits", "search_count", "n", "impressions"])
def test_numbers_of_results_are_not_taken_for_searches(tmp_path: Path, results: str) -> None:
    row = {"query": "steele stake", results: 4812}
    log = read_counts(write(tmp_path / "q.jsonl", json.dumps(row)))
    assert log.counts == {"steele stake": 1.0}
    assert log.columns() == (
        f"queries from 'query', each row one search (--count-column takes one of {results})"
    )
    log = read_counts(tmp_path / "q.jsonl", count_column=results)
    assert log.counts == {"steele stake": 4812.0}
    assert log.columns() == f"queries from 'query', searches from {results!r}"


def test_columns_and_format_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "export", "query,typed,count,sum\nx,a,9,2\n")
    assert read_counts(path, kind="csv", query_column="typed", count_column="sum").counts == {
        "a": 2
    }


BAD: dict[str, tuple[str, str | bytes, str]] = {
    "an unknown name": ("q.xls", "", "--format"),
    "empty": ("q.csv", "", "holds no query"),
    "only a header": ("q.csv", "query,count\n", "holds no query"),
    "nothing counted": ("q.csv", "query,count\na,0\n", "holds no query"),
    "no query column": ("q.csv", "user,count\n1,2\n", "(columns: user, count); name it with --q"),
    "no header": ("q.csv", "steele stake,3\n", "--query-column"),
    "a short row": ("q.csv", "query,count\na,1\nb\n", "line 3 has 1 fields"),
    "an open quote": ("q.csv", 'query,count\na,1\n"b,2\nc,3\n', "malformed"),
    "a word as count": ("q.csv", "query,count\na,many\n", "line 2 has the count 'many'"),
    "a negative count": ("q.csv", "query,count\na,-1\n", "line 2 has the count"),
    "an infinite count": ("q.csv", "query,count\na,inf\n", "line 2 has the count"),
    "another encoding": ("q.csv", "query\ncaf\u00e9\n".encode("latin-1"), "line 2 is not UTF-8"),
    "binary": ("q.log", b"\xff\xfe\x00", "line 1 is not UTF-8"),
    "not json": ("q.jsonl", '{"query": "a"}\n{"query":\n', "line 2 is not JSON"),
    "a list of json": ("q.jsonl", "[1]\n", "line 1 is not a JSON object"),
    "a query that is none": ("q.jsonl", '{"query": 5}\n', "line 1 has no text in 'query'"),
    "a count that is none": (
        "q.jsonl", '{"query": "a", "count": 1}\n{"query": "b", "count": true}\n',
        "line 2 has the count 'True'",
    ),
    "a log without counts": ("q.log", "3 a\nb\n", "line 2 is not a count and a query"),
    "not parquet": ("q.parquet", "query,count\n", "cannot be read as Parquet"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "said"), BAD.values(), ids=BAD.keys())
def test_what_is_wrong_is_said_in_one_line(
    tmp_path: Path, name: str, content: str | bytes, said: str
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(PrecomputeError) as caught:
        read_counts(path)
    message = str(caught.value)
    assert str(path) in message
    assert said in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"query": [1, 2]}, "holds Int64, not text"),
        ({"query": ["a"], "count": ["many"]}, "not numbers"),
        ({"query": ["a", "b"], "count": [1.0, float("nan")]}, "no counts"),
        ({"query": ["a", "b"], "count": [1, None]}, "no counts"),
        ({"query": ["a"], "count": [-1]}, "no counts"),
        ({"user": ["a"]}, "has no column for the query (columns: user)"),
    ],
)
def test_columns_of_parquet_are_checked(
    tmp_path: Path, columns: dict[str, list[Any]], said: str
) -> None:
    with pytest.raises(PrecomputeError) as caught:
        read_counts(parquet(tmp_path / "q.parquet", **columns))
    assert said in str(caught.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    for name in ("no.csv", "no.parquet", "no.jsonl"):
        with pytest.raises(PrecomputeError, match="no such file"):
            read_counts(tmp_path / name)
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(PrecomputeError, match="holds no file"):
        read_counts(tmp_path / "folder.csv")


def test_parquet_without_the_extra_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = parquet(tmp_path / "q.parquet", query=["a"])
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(PrecomputeError, match=r"requery-search\[train\].*CSV"):
        read_counts(path)


def test_a_column_that_only_some_rows_have(tmp_path: Path) -> None:
    rows = [{"query": "a", "count": 2}, {"query": "b"}]
    path = write(tmp_path / "q.jsonl", "\n".join(map(json.dumps, rows)))
    with pytest.raises(PrecomputeError, match="line 2 has the count 'None'"):
        read_counts(path)
