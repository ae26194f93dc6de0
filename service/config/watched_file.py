"""Files that other tools write: read again whenever they change; and their YAML."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any, Generic, TypeVar

import structlog
import yaml

POLL_S = 0.25
"""Between two looks at a file."""
YOUNG_S = 3.0
"""A file changed more recently than this could change again without a new time stamp."""

T = TypeVar("T", bound=Sized)

_Stamp = tuple[int, int, int]

# The loader in C is some ten times as fast, and makes plain values only, like the other.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class FileUnusable(ValueError):
    """The content of a file cannot be taken; the message says why, and not which file."""


class FileInvalid(ValueError):
    """A file cannot be taken; the message names it, and says what is wrong and what to do."""


class FollowedFile(Generic[T]):
    """A file that is parsed again whenever it changes; the last good value stays in force.

    Args:
        path: of the file; a link is followed, and may be moved to another file.
        parse: makes the value from the content and the suffix of the name (".yaml"); raises
            :class:`FileUnusable`.
        initial: the value until the file has been read.
        kind: of file, as in its log events: "keys" for ``keys_file_read``.
        unit: what the value holds, in the plural.
        setting: that names the file.
        count: called with ``ok`` or ``refused`` for each reading after a change.
        max_bytes: longest file read.
    """

    def __init__(
        self,
        path: Path,
        parse: Callable[[bytes, str], T],
        *,
        initial: T,
        kind: str,
        unit: str,
        setting: str,
        count: Callable[[str], None],
        max_bytes: int,
    ) -> None:
        self._file = WatchedFile(path, max_bytes=max_bytes)
        self._parse = parse
        self._kind = kind
        self._unit = unit
        self._setting = setting
        self._count = count
        self._log = structlog.get_logger(component=kind)
        self.value = initial
        """The value in force."""
        self.problem: str | None = None
        """Why the present content was not taken."""

    def load(self) -> T:
        """The value, read for the first time.

        Raises:
            FileInvalid: the file is missing or malformed.
        """
        try:
            self._take(self.read())
        except FileInvalid as error:
            raise FileInvalid(
                f"{error}; mend it, or start without {self._setting}"
            ) from error.__cause__
        return self.value

    def read(self) -> T | None:
        """What the file says; ``None`` if it has not changed. It does not come into force.

        Raises:
            FileInvalid: the file is missing or malformed.
        """
        path = self._file.path
        try:
            content = self._file.changed()
            return None if content is None else self._parse(content, path.suffix.lower())
        except FileUnusable as error:
            raise FileInvalid(f"{self._kind} file {path}: {error}") from error.__cause__

    def poll(self) -> bool:
        """Read the file if it has changed; whether there is a new :attr:`value`. Never raises."""
        before = self.value
        try:
            self._take(self.read())
        except FileInvalid as error:
            self._refuse(str(error))
        except Exception as error:  # noqa: BLE001 - the file is followed whatever happens
            self._refuse(type(error).__name__)  # its message may repeat a secret
        return self.value is not before

    async def follow(self, on_change: Callable[[T], None]) -> None:
        """Poll several times a second; ends when it is cancelled.

        Args:
            on_change: called in the event loop with each new value.
        """
        while True:
            await asyncio.sleep(POLL_S)
            # In a thread: a slow disk or a long list must not hold up requests.
            if await asyncio.to_thread(self.poll):
                on_change(self.value)

    def _take(self, value: T | None) -> None:
        if value is None:
            return
        self.value = value
        path = str(self._file.path)
        if self.problem is not None:
            self._log.info(f"{self._kind}_file_mended", file=path)
        self.problem = None
        self._count("ok")
        self._log.info(f"{self._kind}_file_read", file=path, **{self._unit: len(value)})

    def _refuse(self, problem: str) -> None:
        if problem == self.problem:
            return
        self.problem = problem
        self._count("refused")
        self._log.error(
            f"{self._kind}_file_refused",
            reason=problem,
            detail=f"the last good {self._unit} ({len(self.value)}) stay in force; mend the file",
        )


class WatchedFile:
    """Tells new content from old, at so little cost that it can be asked several times a second.

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
        """The content, if it differs from that of the last call; ``None`` if not.

        Raises:
            FileUnusable: it cannot be read, at every call; it is too long, once for each change.
        """
        try:
            stamp = _stamp(self.path)
            if stamp == self._stamp and not self._young:
                return None
            content = self.path.read_bytes() if stamp[1] <= self._max_bytes else b""
            if _stamp(self.path) != stamp:
                return None  # it is being written: the next call finds it complete
        except OSError as error:
            # Once it is back it is read again, whatever its time stamp says.
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
        # PyYAML runs into these at "!!int x", at impossible dates and at very deep nesting.
        raise yaml.YAMLError(f"a value cannot be read ({error})") from error
