"""Reads how often each query was searched, from common file formats."""

from __future__ import annotations

import codecs
import csv
import gzip
import math
import re
import sys
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader, BytesIO, FileIO, RawIOBase, TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import Any, Literal, cast

import orjson

from service.precompute.errors import PrecomputeError

Format = Literal["parquet", "csv", "tsv", "jsonl", "counts"]

FORMATS: Mapping[str, Format] = {
    ".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "tsv", ".tab": "tsv",
    ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl", ".txt": "counts", ".log": "counts",
    ".counts": "counts",
}  # fmt: skip
"""By the suffix of a file's name."""
QUERY_COLUMNS = (
    "query", "search_query", "search_term", "searchterm", "search_terms", "keyword", "keywords",
    "term", "queries", "q", "text",
)  # fmt: skip
COUNT_COLUMNS = (
    "count", "counts", "frequency", "freq", "searches", "search_volume", "volume", "num_searches",
    "cnt",
)  # fmt: skip
"""Names of columns, the likeliest first; case is ignored. "hits", "search_count", "impressions" and
"n" are not among them because search engines use them for results."""

_COUNTED = re.compile(r"\s*(\S+)(?:\s+(.*\S))?\s*")
_SEPARATOR = re.compile(r'\s*"?sep=(.)"?\s*', re.IGNORECASE)
DELIMITERS = (",", ";", "\t", "|")
"""Of a CSV file; the header says which."""
_ESCAPED = 0xDC00
"""Added to a byte that is not UTF-8, by Python's "surrogateescape"."""
_MAX_SHOWN = 10
_PEEKED = 4096
STDIN = Path("-")
"""Names standard input."""


@dataclass(frozen=True, slots=True)
class QueryLog:
    """The queries of a file.

    Attributes:
        counts: searches of each query as it is written there; ``""`` for rows without a query.
        query_column: the column that the queries are from; ``None`` in a log of counts.
        count_column: the column that the counts are from; ``None``: there is none.
        unused: the other columns.
    """

    counts: Mapping[str, float]
    query_column: str | None = None
    count_column: str | None = None
    unused: tuple[str, ...] = ()

    def columns(self) -> str:
        """The columns that were taken, in words."""
        if self.query_column is None:
            return "a count and a query on each line"
        if self.count_column is not None:
            return f"queries from {self.query_column!r}, searches from {self.count_column!r}"
        others = f" (--count-column takes one of {_listed(self.unused)})" if self.unused else ""
        return f"queries from {self.query_column!r}, each row one search{others}"


def read_counts(
    path: Path,
    *,
    kind: Format | None = None,
    query_column: str | None = None,
    count_column: str | None = None,
    delimiter: str | None = None,
) -> QueryLog:
    """Counts of the queries in a file, and the columns that they are from.

    Args:
        path: Parquet, CSV (with any of :data:`DELIMITERS`) or TSV with a header, JSON Lines, or a
            log of counts (lines of a count and a query, as ``sort queries | uniq -c`` writes
            them); each may be compressed by gzip. Also a folder of such files, as Spark writes it,
            a pipe, or ``-`` for standard input.
        kind: of the file; default: by its name, or by its content if the name says none.
        query_column: default: the first of :data:`QUERY_COLUMNS` in the file.
        count_column: default: the first of :data:`COUNT_COLUMNS` in the file; without one each
            row is one search.
        delimiter: one character between the columns of CSV; default: what a first line ``sep=;``
            names, else the one of :data:`DELIMITERS` with which the header has a query's column.

    Raises:
        PrecomputeError: the file cannot be read, is empty, or lacks a column.
    """
    columns = _Columns(path, query_column, count_column, delimiter)
    counts: defaultdict[str, float] = defaultdict(float)
    try:
        for part in parts_of(path):
            columns.path = part
            with opened(part) as file:
                for query, count in _READERS[kind or kind_of(part, file)](file, columns):
                    counts[query] += count
    except (EOFError, zlib.error) as error:
        raise PrecomputeError(f"{columns.path}: is damaged gzip ({error})") from error
    except OSError as error:
        raise PrecomputeError(
            f"{columns.path}: cannot be read ({error.strerror or error}); check its permissions"
        ) from error
    if not any(counts.values()):
        raise PrecomputeError(f"{path}: holds no query; check the file")
    return QueryLog(dict(counts), *columns.taken)


def parts_of(path: Path) -> list[Path]:
    """The file, or those of a folder without the hidden ones and the marks of other tools.

    Raises:
        PrecomputeError: there is none.
    """
    if path == STDIN:
        return [path]
    if not path.exists():
        raise PrecomputeError(f"{path}: there is no such file")
    if not path.is_dir():
        return [path]
    parts = sorted(
        part
        for part in path.rglob("*")
        if part.is_file() and not any(name[0] in "._" for name in part.relative_to(path).parts)
    )
    if not parts:
        raise PrecomputeError(f"{path}: the folder holds no file; check the path")
    return parts


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """The bytes of a file or of standard input, plain or compressed by gzip."""
    with ExitStack() as stack:
        place = sys.stdin.fileno() if path == STDIN else path
        # Standard input stays open, because it is not ours.
        file = stack.enter_context(open(place, "rb", closefd=path != STDIN))
        if file.peek(2).startswith(b"\x1f\x8b"):
            plain = stack.enter_context(gzip.GzipFile(fileobj=file))
            file = stack.enter_context(BufferedReader(cast("RawIOBase", plain)))
        yield file


def kind_of(path: Path, file: BufferedReader) -> Format:
    """The format by the name, or by the beginning of the content if the name has no suffix.

    Raises:
        PrecomputeError: the name has an unknown suffix.
    """
    suffixes = [one.lower() for one in path.suffixes if one.lower() != ".gz"]
    named = FORMATS.get(suffixes[-1]) if suffixes else None
    if named is not None:
        return named
    if suffixes and path.is_file():
        known = ", ".join(sorted(FORMATS))
        raise PrecomputeError(f"{path}: the name says no format ({known}); say which with --format")
    start = file.peek(_PEEKED).removeprefix(codecs.BOM_UTF8).lstrip()
    first = start.partition(b"\n")[0]
    if first.startswith(b"PAR1"):
        return "parquet"
    if first.startswith(b"{"):
        return "jsonl"
    return "counts" if re.match(rb"\d+(\s|$)", first) else "csv"


class _Columns:
    """Finds the columns of queries and counts."""

    def __init__(
        self, path: Path, query: str | None, count: str | None, delimiter: str | None = None
    ) -> None:
        self.path = path
        self._query = query
        self._count = count
        self.delimiter = delimiter
        self.taken: tuple[str | None, str | None, tuple[str, ...]] = (None, None, ())
        """Of the query, of the count, and all others."""

    def of(self, names: Sequence[str]) -> tuple[str, str | None]:
        """The query's column among ``names``, and the count's if there is one.

        The first file of a folder decides for all.
        """
        query = self._find(names, self._query, QUERY_COLUMNS)
        if query is None:
            raise self._missing(self._query or "for the query", names, "--query-column")
        count = self._find(names, self._count, COUNT_COLUMNS)
        if count is None and self._count is not None:
            raise self._missing(self._count, names, "--count-column")
        self._query, self._count = query, count
        self.taken = (query, count, tuple(name for name in names if name not in (query, count)))
        return query, count

    def delimiter_of(self, header: str) -> str:
        """The delimiter with which the header has a column of queries; a comma if none has."""
        for one in DELIMITERS:
            names = next(csv.reader([header], delimiter=one), [])
            if self._find(names, self._query, QUERY_COLUMNS) is not None:
                return one
        return ","

    def wrong(self, place: str, what: str) -> PrecomputeError:
        return PrecomputeError(f"{self.path}: {place} {what}; correct it, or leave it out")

    def _find(self, names: Sequence[str], given: str | None, likely: Sequence[str]) -> str | None:
        if given is not None:
            return given if given in names else None
        folded = {re.sub(r"[\s-]+", "_", name.strip().lower()): name for name in names}
        return next((folded[name] for name in likely if name in folded), None)

    def _missing(self, wanted: str, names: Sequence[str], option: str) -> PrecomputeError:
        known = _listed(names)
        return PrecomputeError(
            f"{self.path}: has no column {wanted} (columns: {known}); name it with {option}"
        )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(name[:40] for name in names[:_MAX_SHOWN]) or "none"
    return f"{shown}, ..." if len(names) > _MAX_SHOWN else shown


_Rows = Iterator[tuple[str, float]]


def _csv(file: BufferedReader, columns: _Columns) -> _Rows:
    lines = _lines(file, columns)
    head = list(_up_to_text(lines))
    first = head[-1] if head else ""
    if named := _SEPARATOR.fullmatch(first):
        # Excel's own line, with the list separator of the machine that wrote the file.
        head[-1] = "\n"
    delimiter = columns.delimiter or (named[1] if named else columns.delimiter_of(first))
    return _table(csv.reader(chain(head, lines), delimiter=delimiter, strict=True), columns)


def _up_to_text(lines: Iterator[str]) -> Iterator[str]:
    """Lines up to the first that is not blank, which is included."""
    for line in lines:
        yield line
        if line.strip():
            return


def _tsv(file: BufferedReader, columns: _Columns) -> _Rows:
    # TSV has no quoting: a quotation mark is an inch.
    reader = csv.reader(_lines(file, columns), delimiter="\t", quoting=csv.QUOTE_NONE)
    return _table(reader, columns)


def _table(reader: Any, columns: _Columns) -> _Rows:
    header: list[str] | None = None
    query_at, count_at = 0, None
    try:
        for row in reader:
            if not row:
                continue
            if header is None:
                header = row
                query_column, count_column = columns.of(header)
                query_at = header.index(query_column)
                count_at = None if count_column is None else header.index(count_column)
                continue
            if len(row) != len(header):
                raise columns.wrong(
                    f"line {reader.line_num}",
                    f"has {len(row)} fields, and the header has {len(header)}",
                )
            place = f"line {reader.line_num}"
            yield row[query_at], 1.0 if count_at is None else _count(row[count_at], place, columns)
    except csv.Error as error:
        raise columns.wrong(f"line {reader.line_num}", f"is malformed ({error})") from error


def _jsonl(file: BufferedReader, columns: _Columns) -> _Rows:
    found: tuple[str, str | None] | None = None
    for number, line in enumerate(_lines(file, columns), start=1):
        place = f"line {number}"
        if not line.strip():
            continue
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise columns.wrong(place, "is not JSON") from error
        if row is None:
            yield "", 1.0
            continue
        if not isinstance(row, dict):
            raise columns.wrong(place, "is not a JSON object")
        found = found or columns.of([*row])
        query, count = row.get(found[0]), 1.0
        if query is None:
            query = ""
        if not isinstance(query, str):
            raise columns.wrong(place, f"has no text in {found[0]!r}")
        if found[1] is not None:
            count = _count(row.get(found[1]), place, columns)
        yield query, count


def _log(file: BufferedReader, columns: _Columns) -> _Rows:
    for number, line in enumerate(_lines(file, columns), start=1):
        if not line.strip():
            continue
        match = _COUNTED.fullmatch(line)
        if match is None or not (match[2] or match[1].isdecimal()):
            raise columns.wrong(f"line {number}", "is not a count and a query ('sort | uniq -c')")
        # Of a blank line, "uniq -c" writes the count alone.
        yield match[2] or "", _count(match[1], f"line {number}", columns)


def _lines(file: BufferedReader, columns: _Columns) -> Iterator[str]:
    """All lines, with their ends and without byte order marks."""
    with TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="") as text:
        for number, line in enumerate(text, start=1):
            try:
                line.encode()
            except UnicodeEncodeError as error:
                byte = ord(line[error.start]) - _ESCAPED
                raise PrecomputeError(
                    f"{columns.path}: line {number} is not UTF-8 (byte 0x{byte:02x}); convert the "
                    "file (iconv -f WINDOWS-1252 -t UTF-8), or check --format"
                ) from None
            yield line.removeprefix("\ufeff")


def _parquet(file: BufferedReader, columns: _Columns) -> _Rows:
    try:
        import polars as pl
    except ModuleNotFoundError:
        raise PrecomputeError(
            f"{columns.path}: Parquet needs the extra 'train' (pip install "
            "'requery-search[train]'); or convert the file to CSV or JSON Lines"
        ) from None
    try:
        whole = columns.path.is_file() and isinstance(file.raw, FileIO)
        source: Any = columns.path if whole else BytesIO(file.read())
        schema = pl.read_parquet_schema(source)
        query, count = columns.of([*schema])
        _check_types(schema, query, count, columns)
        rows = pl.scan_parquet(source).select(
            pl.col(query).cast(pl.String).fill_null("").alias("query"),
            (pl.lit(1.0) if count is None else pl.col(count).cast(pl.Float64)).alias("count"),
        )
        if count is not None:
            column = pl.col("count")
            bad = column.is_null() | ~column.is_finite() | (column < 0)
            if rows.select(bad.any()).collect().item():
                raise columns.wrong(f"column {count!r}", "has values that are no counts")
        grouped = rows.group_by("query").agg(pl.col("count").sum()).collect()
    except pl.exceptions.PolarsError as error:
        reason = " ".join(str(error).split())[:200]
        raise PrecomputeError(
            f"{columns.path}: cannot be read as Parquet ({reason}); check the file, or --format"
        ) from error
    yield from grouped.iter_rows()


def _check_types(
    schema: Mapping[str, Any], query: str, count: str | None, columns: _Columns
) -> None:
    kind = str(schema[query])
    if not kind.startswith(("String", "Categorical", "Enum")):
        raise columns.wrong(f"column {query!r}", f"holds {kind}, not text")
    if count is not None and not schema[count].is_numeric():
        raise columns.wrong(f"column {count!r}", f"holds {schema[count]}, not numbers")


def _count(value: object, place: str, columns: _Columns) -> float:
    count = math.nan
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            count = float(value)
    if not (math.isfinite(count) and count >= 0):
        raise columns.wrong(place, f"has the count {str(value)[:40]!r}")
    return count


_READERS: Mapping[Format, Callable[[BufferedReader, _Columns], _Rows]] = {
    "parquet": _parquet, "csv": _csv, "tsv": _tsv, "jsonl": _jsonl, "counts": _log,
}  # fmt: skip
