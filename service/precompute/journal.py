"""What a run has done, on disk, so that it can be killed at any moment and go on later.

The first line says what the run is about; each further line says which queries a batch finished,
by their places in the plan. Lines are appended whole and synced, so that a kill or a power cut can
only tear the last one, which is then cut off.
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
    """What became of one query."""

    GENERATED = "generated"
    CACHED = "cached"
    """Was in the cache already."""
    REFUSED = "refused"
    """Can never be rewritten: too many tokens, for example."""
    FAILED = "failed"
    """Not this time; not in the journal, so that the next run tries again."""


LASTING = (Result.GENERATED, Result.CACHED, Result.REFUSED)


@dataclass(frozen=True, slots=True)
class About:
    """What a run is about: a journal is only good for the same.

    Attributes:
        version: name of the model version.
        digest: of the version; covers its decoding parameters.
        cache_schema: of the entries.
        plan: digest of the queries and their counts.
        target: where entries go to: ``engine`` (Redis) or the address of the service.
    """

    version: str
    digest: str
    cache_schema: int
    plan: str
    target: str


class Journal:
    """The journal of one run, locked while it is open.

    Args:
        path: of the file, which is made if it is not there.
        about: what this run is about.
        not_before: entries of an earlier time (seconds since the epoch) count no more: what they
            tell of has left the cache.

    Raises:
        PrecomputeError: it is of another run, damaged, in use, or cannot be written.
    """

    def __init__(self, path: Path, about: About, *, not_before: float = 0.0) -> None:
        self._path = path
        self.done: dict[int, Result] = {}
        """What earlier runs have finished, by place in the plan."""
        try:
            # Without a buffer: what could not be written is not tried again at the end.
            self._file = path.open("a+b", buffering=0)
        except OSError as error:
            raise self._unusable(f"cannot be written ({error.strerror})") from error
        try:
            self._open(about, not_before)
        except BaseException:
            self._file.close()
            raise

    def append(self, results: Mapping[int, Result], *, at: float) -> None:
        """Note results for good: they are on disk when this returns.

        Args:
            results: by place in the plan; those that failed are left out.
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
        """Let go of the file; one of a finished run is removed, since nothing is left to go on."""
        if self._file.closed:
            return
        if finished:
            self._path.unlink(missing_ok=True)
        self._file.close()

    def _open(self, about: About, not_before: float) -> None:
        try:
            # Unlike flock's, this lock is not shared with processes that are forked from here.
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise self._unusable("is in use by another run") from error
        self._file.seek(0)
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        lines = content[:whole].splitlines()
        if not lines:
            if content[: len(_START)] != _START[: len(content)]:
                raise self._unusable("is not a journal")
            self._cut(0)
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
                whole -= len(line) + 1
                break
            if at >= not_before:
                self.done.update(results)
        if whole < len(content):
            self._cut(whole)

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

    def _cut(self, length: int) -> None:
        """Take off a torn line, so that the next does not follow on from it."""
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
    """Make a new file's name last as well."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
