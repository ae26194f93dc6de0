"""The keys in force: the admin key of the settings, and the keys of a file that may change."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from pydantic import SecretStr

from service.config.watched_file import FileInvalid, FileUnusable, FollowedFile
from service.security.api_keys import Key, admin_key, find, read_keys
from service.security.metrics import KeyMetrics

MAX_BYTES = 2**20
"""Longest file of keys."""


class KeyRing:
    """All keys that this process knows, as hashes.

    Args:
        admin: the admin key of the settings, if there is one; only its hash is kept.
        file: of API keys, if there is one; read by :meth:`load`.
        metrics: count readings and uses.
    """

    def __init__(
        self, *, admin: SecretStr | None = None, file: Path | None = None, metrics: KeyMetrics
    ) -> None:
        self._admin = () if admin is None else (admin_key(admin.get_secret_value()),)
        self._file = None if file is None else keys_file(file, metrics)
        self._metrics = metrics
        self._keys: tuple[Key, ...] = ()
        self._hold(())

    @property
    def configured(self) -> bool:
        """Whether changes need a key."""
        return bool(self._admin) or self._file is not None

    @property
    def guards_all(self) -> bool:
        """Whether rewriting and metrics need a key too, because there is a file of keys."""
        return self._file is not None

    @property
    def keys(self) -> tuple[Key, ...]:
        """The keys in force, the revoked and expired ones included."""
        return self._keys

    def find(self, given: bytes) -> Key | None:
        """The key that was sent, valid or not, if it is one of :attr:`keys`."""
        return find(self._keys, given)

    def load(self) -> None:
        """Read the file for the first time; without one this does nothing.

        Raises:
            FileInvalid: the file is missing or malformed.
        """
        if self._file is not None:
            self._hold(self._file.load())

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """Follow the file while the block runs."""
        if self._file is None:
            yield
            return
        task = asyncio.create_task(self._file.follow(self._hold), name="keys")
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def _hold(self, keys: tuple[Key, ...]) -> None:
        self._keys = (*self._admin, *keys)
        self._metrics.show(key.name for key in self._keys)


def keys_file(path: Path, metrics: KeyMetrics | None = None) -> FollowedFile[tuple[Key, ...]]:
    """The file of keys; not read yet."""
    return FollowedFile(
        path,
        read_keys,
        initial=(),
        kind="keys",
        unit="keys",
        setting="REQUERY_API_KEYS_FILE ('requery keys check' checks it)",
        count=metrics.read if metrics is not None else lambda _result: None,
        max_bytes=MAX_BYTES,
    )


def check_keys_file(path: Path) -> tuple[Key, ...]:
    """The keys of a file.

    Raises:
        FileInvalid: it is missing or malformed.
    """
    return keys_file(path).read() or ()


def append_entry(path: Path, text: str) -> None:
    """Add an entry at the end of a YAML file of keys, which is made if it is missing.

    The result is checked before it is written, in one write, and other commands wait meanwhile.
    Nothing but the new entry is written, so comments, owner and mode stay.

    Args:
        path: of the file; a new one can be read by its owner alone.
        text: of the entry, as :func:`service.security.api_keys.entry` makes it.

    Raises:
        FileInvalid: the file cannot be written, is malformed, or the entry does not fit in.
    """
    if path.suffix.lower() not in (".yaml", ".yml"):
        raise FileInvalid(
            f"keys file {path}: entries are added to .yaml (or .yml) alone; rename it"
        )
    try:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), "rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            before = file.read(MAX_BYTES)
            added = text.encode()
            if before and not before.endswith(b"\n"):
                added = b"\n" + added
            read_keys(before + added, ".yaml")
            file.write(added)
            file.flush()
            os.fsync(file.fileno())
    except FileUnusable as error:
        raise FileInvalid(f"keys file {path}: {error}; nothing was added") from None
    except OSError as error:
        raise FileInvalid(f"keys file {path}: cannot be written ({error.strerror})") from error
