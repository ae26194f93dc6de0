"""Overrides out of a file that other tools write: a mounted configuration, a checked-out list."""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
import structlog
import yaml

from service.config.watched_file import FileUnusable, WatchedFile, load_yaml
from service.errors import FieldError, InvalidRequest
from service.overrides.entries import Entry, read_entries
from service.overrides.metrics import OverrideMetrics
from service.overrides.table import MAX_ENTRIES, Table

_log = structlog.get_logger(component="overrides")

MAX_BYTES = 16 * 2**20
"""Longest file read."""
_POLL_S = 0.25
_EXAMPLE = "overrides: [{kind: block_query, query: ..., author: ..., reason: ...}]"

_PLACE = re.compile(r"\boverrides\.(\d+)(?:\.([\w.]*\w))?")


class OverridesFileInvalid(Exception):
    """The overrides file cannot be taken; the message says where it is wrong and what to do."""


class OverridesFile:
    """The file, read again whenever it has changed.

    It is a mapping with the one key ``overrides``: a list of entries, each with a kind, its texts,
    an author and a reason. Nothing is ever written to it.

    Args:
        path: of the file; ``.json`` is read as JSON, ``.yaml`` and ``.yml`` as YAML.
        metrics: where readings are counted.
    """

    def __init__(self, path: Path, *, metrics: OverrideMetrics) -> None:
        self._path = path
        self._file = WatchedFile(path, max_bytes=MAX_BYTES)
        self._metrics = metrics
        self.table = Table(source="file")
        """What it says; the last good state if it is malformed now."""
        self.problem: str | None = None
        """Why the file as it is now was not taken."""

    def load(self) -> None:
        """Read it for the first time.

        Raises:
            OverridesFileInvalid: it is not there, or malformed.
        """
        try:
            self._read()
        except OverridesFileInvalid as error:
            raise OverridesFileInvalid(
                f"{error}; mend it, or start without REQUERY_OVERRIDES_FILE"
            ) from error.__cause__

    async def follow(self, told: Callable[[Table], None]) -> None:
        """Look for changes several times a second and tell of each; ends when it is cancelled.

        Whatever is wrong with the file is logged once, and the last good state stays in force.
        """
        while True:
            await asyncio.sleep(_POLL_S)
            # In a thread: a slow disk or a long list must not hold up requests.
            if await asyncio.to_thread(self.poll):
                told(self.table)

    def poll(self) -> bool:
        """Read the file if it has changed; whether there is a new :attr:`table`. Never raises."""
        before = self.table
        try:
            self._read()
        except OverridesFileInvalid as error:
            self._refuse(str(error))
        except Exception as error:  # noqa: BLE001 - following must go on
            self._refuse(f"{type(error).__name__}: {error}")
        return self.table is not before

    def _read(self) -> None:
        try:
            content = self._file.changed()
        except FileUnusable as error:
            raise self._invalid(str(error)) from error
        if content is None:
            return
        self.table = self._table(content)
        if self.problem is not None:
            _log.info("overrides_file_mended", file=str(self._path))
        self.problem = None
        self._metrics.read("ok")
        _log.info("overrides_file_read", file=str(self._path), entries=len(self.table))

    def _table(self, content: bytes) -> Table:
        parse = _PARSERS.get(self._path.suffix.lower())
        if parse is None:
            raise self._invalid("is neither .json nor .yaml (or .yml); rename it")
        try:
            data = parse(content)
        except (ValueError, yaml.YAMLError) as error:
            raise self._invalid(f"is malformed: {_brief(error)}") from error
        if not isinstance(data, Mapping) or set(data) != {"overrides"}:
            raise self._invalid(f"must hold the one key 'overrides', as in {_EXAMPLE}")
        try:
            entries = read_entries(data["overrides"], most=MAX_ENTRIES)
            return Table([_complete(i, one) for i, one in enumerate(entries)], source="file")
        except InvalidRequest as error:
            first, others = error.errors[0], len(error.errors) - 1
            more = f" (and {others} more)" if others else ""
            raise self._invalid(f"{_in_words(first.field)}: {_in_words(first.detail)}{more}") from (
                error
            )

    def _invalid(self, what: str) -> OverridesFileInvalid:
        return OverridesFileInvalid(f"overrides file {self._path}: {what}")

    def _refuse(self, problem: str) -> None:
        if problem == self.problem:
            return
        self.problem = problem
        self._metrics.read("refused")
        _log.error(
            "overrides_file_refused",
            reason=problem,
            detail=f"its last good state ({len(self.table)} entries) stays in force; mend the file",
        )


_PARSERS: Mapping[str, Callable[[bytes], Any]] = {
    ".json": orjson.loads,
    ".yaml": load_yaml,
    ".yml": load_yaml,
}


def _complete(index: int, entry: Entry) -> Entry:
    """With an id that stays the same as long as the entry is about the same thing."""
    if entry.author is None:
        raise InvalidRequest([FieldError(f"overrides.{index}.author", "is required in a file")])
    if entry.id is not None:
        return entry
    about = f"{entry.kind} {entry.subject}"
    hashed = hashlib.blake2b(about.encode(), digest_size=6).hexdigest()
    return entry.model_copy(update={"id": f"file-{hashed}"})


def _in_words(text: str) -> str:
    """With places such as ``overrides.2.reason`` as people count: ``entry 3, reason``."""
    return _PLACE.sub(lambda m: f"entry {int(m[1]) + 1}" + (f", {m[2]}" if m[2] else ""), text)


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
