"""Files that other tools write: read again whenever they have changed, and their YAML."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import yaml

YOUNG_S = 3.0
"""A file changed more recently than this could change again without a new time stamp."""

_Stamp = tuple[int, int, int]

# The loader in C is some ten times as fast, and like the other makes plain values only.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class FileUnusable(Exception):
    """The file cannot be read, or is too long; the message says why, and not which file."""


class WatchedFile:
    """Tells new content from old, cheaply enough to be asked several times a second.

    Args:
        path: of the file; a link is followed, and may be moved to another file.
        max_bytes: longest file read.
    """

    def __init__(self, path: Path, *, max_bytes: int) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self._stamp: _Stamp | None = None
        self._young = True
        self._digest = b""

    def changed(self) -> bytes | None:
        """The content if it is not what was read last; ``None`` if there is nothing new.

        Raises:
            FileUnusable: it cannot be read, at every call; it is too long, once for each change.
        """
        try:
            stamp = _stamp(self.path)
            if stamp == self._stamp and not self._young:
                return None
            content = self.path.read_bytes() if stamp[1] <= self._max_bytes else b""
            if _stamp(self.path) != stamp:
                return None  # somebody is writing it: the next look will see it whole
        except OSError as error:
            # Once it is back it is read anew, whatever its time stamp says.
            self._stamp, self._digest = None, b""
            raise FileUnusable(
                f"cannot be read ({error.strerror or error}); check its path and permissions"
            ) from error
        self._stamp = stamp
        self._young = abs(time.time() - stamp[0] / 1e9) < YOUNG_S
        digest = hashlib.blake2b(content, digest_size=16, key=str(stamp[1]).encode()).digest()
        if digest == self._digest:
            return None
        self._digest = digest
        if stamp[1] > self._max_bytes:
            raise FileUnusable(f"is {stamp[1]} bytes long, and at most {self._max_bytes} are taken")
        return content


def _stamp(path: Path) -> _Stamp:
    found = path.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino


def load_yaml(content: bytes) -> Any:
    """The one document in ``content``.

    Raises:
        yaml.YAMLError: it is malformed; a ``MarkedYAMLError`` knows where.
    """
    try:
        return yaml.load(content, Loader=_LOADER)  # noqa: S506 - a safe loader
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        # What PyYAML runs into at "!!int x", a date that there is none of, or very deep nesting.
        raise yaml.YAMLError(f"a value cannot be read ({error})") from error
