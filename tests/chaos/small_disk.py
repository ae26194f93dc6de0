"""A disk of a few kilobytes, that can be filled and freed again."""

from __future__ import annotations

import errno
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

_SCRIPT = 'mount -t tmpfs -o "size=$0" tmpfs "$1" && echo mounted && read -r _'
_FILLER = "filler"


class SmallDisk:
    """A file system of its own, mounted for a ``with`` block.

    It is mounted in name spaces of its own, which needs no privileges where the kernel allows them
    to be made, and cannot be left behind. Other processes see it at :attr:`path` too. Tests are
    skipped where this is not possible.

    Args:
        folder: an empty one, where it is mounted.
        kib: its size.
    """

    def __init__(self, folder: Path, *, kib: int) -> None:
        self._folder = folder
        self._kib = kib

    def __enter__(self) -> Self:
        command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", _SCRIPT]
        try:
            self._holder = subprocess.Popen(
                [*command, f"{self._kib}k", str(self._folder)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        except FileNotFoundError:
            pytest.skip("no unshare here")
        assert self._holder.stdout is not None
        if self._holder.stdout.readline() != "mounted\n":
            _, why = self._holder.communicate()
            pytest.skip(f"no disk can be mounted here: {why.strip()}")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._holder.communicate("\n")

    @property
    def path(self) -> Path:
        """Its root."""
        return Path(f"/proc/{self._holder.pid}/root{self._folder}")

    def fill(self, *, but_kib: int = 0) -> None:
        """Leave no room, or as much as ``but_kib``."""
        with (self.path / _FILLER).open("ab", buffering=0) as filler:
            try:
                while True:
                    filler.write(bytes(1024))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
            filler.truncate(max(0, filler.tell() - but_kib * 1024))

    def free(self) -> None:
        """Make room again."""
        (self.path / _FILLER).unlink()
