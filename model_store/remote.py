"""Read access to a folder at any fsspec URL (``s3://``, ``gs://``, ``memory://``, ...)."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from model_store.errors import ModelStoreError

_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}
"""Extras with the drivers, by the scheme of the URL."""


class RemoteUnreadable(ModelStoreError):
    """A URL cannot be read: its driver is missing, it is refused, or nothing is there."""


class RemoteFolder:
    """A file or folder at a URL.

    Raises:
        RemoteUnreadable: the URL's scheme is unknown or its driver is not installed. Every
            method raises it as well, if the store behind the URL cannot be read.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        with self._reading():
            filesystem, root = fsspec.core.url_to_fs(self.url)
        self._filesystem: Any = filesystem
        self._root = str(root).rstrip("/")

    def is_file(self) -> bool:
        """Whether the URL names a file."""
        with self._reading():
            return bool(self._filesystem.isfile(self._root))

    def folders(self) -> list[str]:
        """Names of the folders directly below."""
        with self._reading():
            if not self._filesystem.exists(self._root):
                raise FileNotFoundError(errno.ENOENT, "nothing is stored there")
            entries = self._filesystem.ls(self._root, detail=True)
            return sorted(
                PurePosixPath(entry["name"]).name
                for entry in entries
                if entry["type"] == "directory"
            )

    def files(self, below: str = "") -> list[str]:
        """Names of all files below, relative to the folder ``below``."""
        root = self._at(below)
        with self._reading():
            # Some drivers cache listings, and a version may have been added.
            self._filesystem.invalidate_cache()
            return sorted(self._relative(found, root) for found in self._filesystem.find(root))

    def read(self, name: str, *, most: int) -> bytes:
        """Bytes of a small file.

        Args:
            name: relative to the URL.
            most: bytes that it may have.

        Raises:
            RemoteUnreadable: it cannot be read, or is longer.
        """
        with self._reading():
            data = bytes(self._filesystem.cat_file(self._at(name), end=most + 1))
        if len(data) > most:
            raise RemoteUnreadable(f"{name} in {self.url} is longer than {most} bytes")
        return data

    def size(self, name: str) -> int | None:
        """Bytes of a file; ``None`` if the store behind the URL does not say."""
        with self._reading():
            found = self._filesystem.size(self._at(name))
        return None if found is None else int(found)

    def download(self, name: str, target: Path) -> None:
        """Copy a file to this machine; ``""`` is the URL itself.

        Raises:
            RemoteUnreadable: it cannot be read.
            OSError: the disk is full.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        with self._reading():
            self._filesystem.get_file(self._at(name), str(target))

    def _at(self, name: str) -> str:
        parts = PurePosixPath(name).parts
        if ".." in parts or name.startswith("/"):
            raise RemoteUnreadable(f"refusing the name {name!r} below {self.url}")
        return f"{self._root}/{name}" if name else self._root

    @staticmethod
    def _relative(found: str, root: str) -> str:
        name = found.removeprefix(root).lstrip("/")
        if ".." in PurePosixPath(name).parts:
            raise ValueError(f"refusing the name {name!r}")
        return name

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (ModelStoreError, MemoryError):
            raise
        except ImportError as error:
            extra = _EXTRAS.get(self.url.partition("://")[0])
            hint = f"; pip install 'requery-search[{extra}]'" if extra else ""
            raise RemoteUnreadable(
                f"cannot read {self.url}: its driver is not installed{hint} ({error})"
            ) from error
        except Exception as error:
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            # Each driver raises errors of its own libraries: of HTTP, of credentials.
            reason = " ".join(str(error).split()) or type(error).__name__
            raise RemoteUnreadable(f"cannot read {self.url}: {reason}") from error
