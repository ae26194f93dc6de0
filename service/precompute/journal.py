"""The journal of a run on disk, so that a killed run can be continued.

The first line identifies the run; each further line lists the queries that a batch finished, by
their places in the plan. Lines are appended and synced one by one, so that a kill or a power cut
can only tear the last one, which is then removed.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from itertools import groupby
from pathlib import Path
from typing import Any

import orjson

from service.precompute.errors import PrecomputeError

_FORMAT = 1
_NAME = "requery-precompute"
_START = f'{{"{_NAME}":'.encode()


class Result(StrEnum):
    """The result of one query."""

    GENERATED = "generated"
    CACHED = "cached"
    """It was in the cache already."""
    REFUSED = "refused"
    """It can never be rewritten, for example because it has too many tokens."""
    FAILED = "failed"
    """It is not recorded, so the next run tries again."""


LASTING = (Result.GENERATED, Result.CACHED, Result.REFUSED)


@dataclass(frozen=True, slots=True)
class About:
    """Identifies a run: a journal belongs to one.

    Attributes:
        version: name of the model version.
        digest: of the version; covers its decoding parameters.
        cache_schema: of the entries.
        plan: digest of the queries and their counts.
        target: where entries go: ``engine`` (Redis) or the address of the service.
    """

    version: str
    digest: str
    cache_schema: int
    plan: str
    target: str


class Journal:
    """The journal of one run, locked while it is open.

    Args:
        path: of the file, which is created if missing.
        about: identifies this run.
        not_before: entries of an earlier time (seconds since the epoch) are ignored because their
            answers have left the cache.

    Raises:
        PrecomputeError: it belongs to another run, is damaged, in use, or cannot be written.
    """

    def __init__(self, path: Path, about: About, *, not_before: float = 0.0) -> None:
        self._path = path
        self.done: dict[int, Result] = {}
        """Results of earlier runs, by place in the plan."""
        try:
            # Without a buffer, because close() would retry a failed write.
            self._file = path.open("a+b", buffering=0)
        except OSError as error:
            raise self._unusable(f"cannot be written ({error.strerror})") from error
        try:
            self._open(about, not_before)
        except BaseException:
            self._file.close()
            raise

    def append(self, results: Mapping[int, Result], *, at: float) -> None:
        """Record results: they are on disk when this returns.

        Args:
            results: by place in the plan; failures are left out.
            at: now, in seconds since the epoch.
        """
        line: dict[str, Any] = {"at": at}
        for kind in LASTING:
            places = sorted(place for place, result in results.items() if result is kind)
            if places:
                line[kind.value] = list(_ranges(places))
        if len(line) > 1:
            self._write(orjson.dumps(line) + b"\n")

    def close(self, *, finished: bool = False) -> None:
        """Close the file; remove it if the run has finished."""
        if self._file.closed:
            return
        if finished:
            self._path.unlink(missing_ok=True)
        self._file.close()

    def _open(self, about: About, not_before: float) -> None:
        try:
            # Unlike flock's, this lock is not shared with forked processes.
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise self._unusable("is in use by another run") from error
        self._file.seek(0)
        content = self._file.read()
        complete = content.rfind(b"\n") + 1
        lines = content[:complete].splitlines()
        if not lines:
            if content[: len(_START)] != _START[: len(content)]:
                raise self._unusable("is not a journal")
            self._truncate(0)
            header = {_NAME: _FORMAT, **asdict(about)}
            self._write(orjson.dumps(header) + b"\n")
            _sync_folder(self._path.parent)
            return
        self._check(lines[0], about)
        for number, line in enumerate(lines[1:], start=2):
            try:
                at, results = _read(line)
            except (ValueError, TypeError, KeyError) as error:
                if number < len(lines):
                    raise self._unusable(f"is damaged in line {number}") from error
                complete -= len(line) + 1
                break
            if at >= not_before:
                self.done.update(results)
        if complete < len(content):
            self._truncate(complete)

    def _check(self, header: bytes, about: About) -> None:
        try:
            found = orjson.loads(header)
            kind = found.pop(_NAME)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise self._unusable("is not a journal") from error
        wanted = asdict(about)
        if kind != _FORMAT or found.keys() != wanted.keys():
            raise self._unusable("is of another release")
        other = [name for name, value in wanted.items() if found[name] != value]
        if other:
            what = {"plan": "input", "digest": "version", "cache_schema": "release"}
            names = dict.fromkeys(what.get(name, name) for name in other)
            raise self._unusable(
                f"is of a run with another {' and '.join(names)} (version {found['version']})"
            )

    def _write(self, line: bytes) -> None:
        try:
            left = memoryview(line)
            while left:
                left = left[self._file.write(left) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._unusable(f"cannot be written ({error.strerror})") from error

    def _truncate(self, length: int) -> None:
        """Remove a torn line, so that the next one starts a line of its own."""
        self._file.truncate(length)
        os.fsync(self._file.fileno())

    def _unusable(self, why: str) -> PrecomputeError:
        return PrecomputeError(
            f"the journal {self._path} {why}; remove it to start over, or choose another place "
            "with --journal"
        )


def _read(line: bytes) -> tuple[float, dict[int, Result]]:
    row = orjson.loads(line)
    results = {
        place: kind
        for kind in LASTING
        for first, end in row.get(kind.value, ())
        for place in range(first, end)
    }
    return float(row["at"]), results


def _ranges(places: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Sorted places as half-open ranges."""
    for _, run in groupby(enumerate(places), key=lambda pair: pair[1] - pair[0]):
        members = [place for _, place in run]
        yield members[0], members[-1] + 1


def _sync_folder(folder: Path) -> None:
    """Sync the entry of a new file in its folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
