"""Rows of a shop's files: CSV, TSV, JSON Lines, JSON or Parquet, whatever their columns.

Unlike the query logs of ``requery precompute``, whose every line counts, an export of a shop may
have bad rows: they are counted and told with their line numbers, and the others are read.
"""

from __future__ import annotations

import csv
import html
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import BufferedReader, BytesIO, TextIOWrapper
from itertools import chain
from pathlib import Path
from typing import Any

import orjson

from service.precompute.errors import PrecomputeError
from service.precompute.readers import DELIMITERS, Format, kind_of, opened, parts_of
from training.errors import DataError

MOST_TOLD = 20
"""Bad rows that are told with their place; the others are only counted."""
_BATCH = 8192
_LONGEST_FIELD = 2**20

Row = Mapping[str, str]
"""Column -> text; nested fields of JSON as ``outer.inner``."""
_Raw = Iterator[tuple[str, dict[str, Any] | str]]
"""The place of a row, and the row, or what is wrong with it."""


@dataclass(slots=True)
class BadRows:
    """Rows that cannot be read.

    Attributes:
        count: how many.
        told: place and fault of the first :data:`MOST_TOLD`.
    """

    count: int = 0
    told: list[str] = field(default_factory=list)

    def add(self, place: str, fault: str) -> None:
        """Count one more."""
        self.count += 1
        if len(self.told) < MOST_TOLD:
            self.told.append(f"{place}: {fault}")


class Columns:
    """Which column of a file holds what.

    Args:
        usual: for each field the column names that it usually has, the likeliest first.
        given: columns that the user named; they must be there.
    """

    def __init__(
        self, usual: Mapping[str, Sequence[str]], given: Mapping[str, str | None] | None = None
    ) -> None:
        self._usual = usual
        self._given = {name: column for name, column in (given or {}).items() if column}

    def find(self, names: Sequence[str]) -> dict[str, str]:
        """Field -> column, of those that ``names`` has.

        Raises:
            DataError: a column that the user named is not there.
        """
        folded = {re.sub(r"[\s-]+", "_", name.strip().lower()): name for name in reversed(names)}
        found: dict[str, str] = {}
        for wanted, usual in self._usual.items():
            given = self._given.get(wanted)
            if given is not None and given not in names:
                known = ", ".join(name[:40] for name in names[:12])
                raise DataError(f"there is no column {given!r} (columns: {known})")
            taken = set(found.values())
            free = (folded[name] for name in usual if folded.get(name) not in (None, *taken))
            column = given or next(free, None)
            if column is not None:
                found[wanted] = column
        return found


def read_rows(
    path: Path, columns: Columns, needed: Sequence[str], bad: BadRows, kind: Format | None = None
) -> Iterator[dict[str, str]]:
    """The rows of a file, of a folder of files, or of standard input (``-``), one by one.

    Args:
        path: may be compressed by gzip.
        columns: what to look for.
        needed: fields; a file that has none of them is refused.
        bad: gets the rows that cannot be read.
        kind: of the file; default: by its name or content.

    Yields:
        field -> text, without white space at the ends; fields that the row lacks are left out.

    Raises:
        DataError: a file cannot be read, or has no column for any of ``needed``.
    """
    try:
        for part in parts_of(path):
            with opened(part) as file:
                found: dict[str, str] = {}
                form = kind or kind_of(part, file)
                for place, row in _READERS[form](file, part, columns, needed):
                    if isinstance(row, str):
                        bad.add(f"{part.name}: {place}", row)
                        continue
                    # JSON objects leave out what they have no value for.
                    if not found or form == "jsonl":
                        found = columns.find([*row])
                    yield {
                        name: _text(row[column])
                        for name, column in found.items()
                        if row[column] not in (None, "")
                    }
    except PrecomputeError as error:
        raise DataError(str(error)) from error
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except (EOFError, zlib.error) as error:
        raise DataError(f"{path}: is damaged gzip ({error})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _text(value: Any) -> str:
    if isinstance(value, list):
        value = " ".join(str(one) for one in value if not isinstance(one, dict | list))
    text = str(value).strip()
    return html.unescape(text) if "&" in text else text


def _has(needed: Sequence[str], found: Mapping[str, str]) -> bool:
    return any(name in found for name in needed)


def _lacks(part: Path, needed: Sequence[str], names: Sequence[str]) -> DataError:
    known = ", ".join(name[:40] for name in names[:12]) or "none"
    what = f"name it with --{needed[0]}-column" if needed[0] == "title" else "rename one"
    return DataError(f"{part.name} has no column for the {needed[0]} (columns: {known}); {what}")


def _csv(file: BufferedReader, part: Path, columns: Columns, needed: Sequence[str]) -> _Raw:
    lines = _lines(file)
    head = next((line for line in lines if line.strip()), "")
    if named := re.fullmatch(r'\s*"?sep=(.)"?\s*', head, re.IGNORECASE):
        delimiter = named[1]
        head = next(lines, "")
    else:
        delimiter = _delimiter(head, columns, needed)
    reader = csv.reader(chain([head], lines), delimiter=delimiter)
    return _table(reader, part, columns, needed)


def _delimiter(head: str, columns: Columns, needed: Sequence[str]) -> str:
    def fit(one: str) -> tuple[bool, int]:
        names = next(csv.reader([head], delimiter=one), [])
        try:
            return _has(needed, columns.find(names)), len(names)
        except DataError:
            return False, len(names)

    return max(DELIMITERS, key=fit)


def _tsv(file: BufferedReader, part: Path, columns: Columns, needed: Sequence[str]) -> _Raw:
    # TSV has no quoting: a quotation mark is an inch.
    reader = csv.reader(_lines(file), delimiter="\t", quoting=csv.QUOTE_NONE)
    return _table(reader, part, columns, needed)


def _table(reader: Any, part: Path, columns: Columns, needed: Sequence[str]) -> _Raw:
    csv.field_size_limit(_LONGEST_FIELD)
    header: list[str] | None = None
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            yield f"line {reader.line_num}", f"is malformed ({error})"
            continue
        if row is None:
            return
        place = f"line {reader.line_num}"
        if header is None:
            header = [name.strip() for name in row]
            if not _has(needed, columns.find(header)):
                raise _lacks(part, needed, header)
        elif not row:
            continue
        elif len(row) != len(header):
            yield place, f"has {len(row)} fields, and the header has {len(header)}"
        elif not _is_text("".join(row)):
            yield place, "is not UTF-8 (iconv -f WINDOWS-1252 -t UTF-8 converts a file)"
        else:
            yield place, dict(zip(header, row, strict=True))


def _jsonl(file: BufferedReader, part: Path, columns: Columns, needed: Sequence[str]) -> _Raw:
    seen: dict[str, None] = {}
    found = False
    if file.peek(1)[:1] == b"[":
        try:
            items = enumerate(orjson.loads(file.read()), start=1)
        except orjson.JSONDecodeError as error:
            raise DataError(f"{part.name} is not JSON ({error})") from error
        loaded: _Raw = ((f"item {number}", item) for number, item in items)
    else:
        loaded = _objects(file)
    for place, row in loaded:
        if isinstance(row, str):
            yield place, row
        elif not isinstance(row, dict):
            yield place, "is not a JSON object"
        else:
            flat = dict(_flat(row.get("_source", row)))
            found = found or _has(needed, columns.find([*flat]))
            if not found and len(seen) < 1000:
                seen |= dict.fromkeys(flat)
            yield place, flat
    if seen and not found:
        raise _lacks(part, needed, [*seen])


def _objects(file: BufferedReader) -> _Raw:
    for number, line in enumerate(file, start=1):
        text = line.removeprefix(b"\xef\xbb\xbf").strip()
        if text:
            try:
                yield f"line {number}", orjson.loads(text)
            except orjson.JSONDecodeError:
                yield f"line {number}", "is not JSON"


def _flat(row: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def _parquet(file: BufferedReader, part: Path, columns: Columns, needed: Sequence[str]) -> _Raw:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(part if part.is_file() else BytesIO(file.read()))
        names = table.schema_arrow.names
        found = columns.find(names)
        if not _has(needed, found):
            raise _lacks(part, needed, names)
        number = 0
        for batch in table.iter_batches(_BATCH, columns=[*found.values()]):
            for row in batch.to_pylist():
                number += 1
                yield f"row {number}", row
    except (pa.ArrowException, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{part.name} cannot be read as Parquet ({reason})") from error


def _lines(file: BufferedReader) -> Iterator[str]:
    with TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="") as text:
        for line in text:
            yield line.removeprefix("\ufeff")


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


_READERS: Mapping[str, Callable[[BufferedReader, Path, Columns, Sequence[str]], _Raw]] = {
    # A name such as products.txt says little: the header says the delimiter.
    "csv": _csv, "counts": _csv, "tsv": _tsv, "jsonl": _jsonl, "parquet": _parquet,
}  # fmt: skip
