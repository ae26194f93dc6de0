"""Overrides in a file that other tools write, such as a mounted configuration."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
import yaml

from service.config.watched_file import FileUnusable, FollowedFile, load_yaml
from service.errors import FieldError, InvalidRequest
from service.overrides.entries import Entry, read_entries
from service.overrides.metrics import OverrideMetrics
from service.overrides.table import MAX_ENTRIES, Table

MAX_BYTES = 16 * 2**20
"""Longest file read."""
_EXAMPLE = "overrides: [{kind: block_query, query: ..., author: ..., reason: ...}]"

_PLACE = re.compile(r"\boverrides\.(\d+)(?:\.([\w.]*\w))?")


def overrides_file(path: Path, metrics: OverrideMetrics) -> FollowedFile[Table]:
    """The file of overrides; not read yet, and never written."""
    return FollowedFile(
        path,
        parse_overrides,
        initial=Table(source="file"),
        kind="overrides",
        unit="entries",
        setting="REQUERY_OVERRIDES_FILE",
        count=metrics.read,
        max_bytes=MAX_BYTES,
    )


def parse_overrides(content: bytes, suffix: str) -> Table:
    """The entries of a file: a mapping with the one key ``overrides``, which holds a list.

    Args:
        content: of the file.
        suffix: of its name: ``.json`` is read as JSON, ``.yaml`` and ``.yml`` as YAML.

    Raises:
        FileUnusable: it is malformed; the message says which entry is wrong.
    """
    parse = _PARSERS.get(suffix)
    if parse is None:
        raise FileUnusable("is neither .json nor .yaml (or .yml); rename it")
    try:
        data = parse(content)
    except (ValueError, yaml.YAMLError) as error:
        raise FileUnusable(f"is malformed: {_brief(error)}") from error
    if not isinstance(data, Mapping) or set(data) != {"overrides"}:
        raise FileUnusable(f"must hold the one key 'overrides', as in {_EXAMPLE}")
    try:
        entries = read_entries(data["overrides"], most=MAX_ENTRIES)
        return Table([_complete(i, one) for i, one in enumerate(entries)], source="file")
    except InvalidRequest as error:
        first, others = error.errors[0], len(error.errors) - 1
        more = f" (and {others} more)" if others else ""
        raise FileUnusable(f"{_in_words(first.field)}: {_in_words(first.detail)}{more}") from error


_PARSERS: Mapping[str, Callable[[bytes], Any]] = {
    ".json": orjson.loads,
    ".yaml": load_yaml,
    ".yml": load_yaml,
}


def _complete(index: int, entry: Entry) -> Entry:
    """The entry with an id; the id depends only on what the entry is about."""
    if entry.author is None:
        raise InvalidRequest([FieldError(f"overrides.{index}.author", "is required in a file")])
    if entry.id is not None:
        return entry
    about = f"{entry.kind} {entry.subject}"
    hashed = hashlib.blake2b(about.encode(), digest_size=6).hexdigest()
    return entry.model_copy(update={"id": f"file-{hashed}"})


def _in_words(text: str) -> str:
    """The text with ``overrides.2.reason`` written as ``entry 3, reason``."""
    return _PLACE.sub(lambda m: f"entry {int(m[1]) + 1}" + (f", {m[2]}" if m[2] else ""), text)


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
