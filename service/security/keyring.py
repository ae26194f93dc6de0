"""The keys in force: the admin key of the settings, and those of a file that may change."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry, Counter
from pydantic import SecretStr

from service.config.watched_file import FileUnusable, WatchedFile
from service.security.api_keys import Key, KeysInvalid, admin_key, find, read_keys

_log = structlog.get_logger(component="keys")

MAX_BYTES = 2**20
"""Longest file of keys."""
_POLL_S = 0.25


class KeysFileInvalid(ValueError):
    """The file of keys cannot be taken at the start; the message says why and what to do."""


class KeyMetrics:
    """Uses of keys, and readings of their file.

    Args:
        registry: where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        reads = Counter(
            "requery_api_keys_file_reads",
            "Readings of the file of API keys after a change, by result; after a refusal the last "
            "good keys stay in force",
            ["result"],
            registry=registry,
        )
        self._reads = {result: reads.labels(result) for result in ("ok", "refused")}
        self._uses = Counter(
            "requery_api_key_uses",
            "Requests let in by name of their key: whether one is still used before it is revoked",
            ["key"],
            registry=registry,
        )
        self._uses_of: dict[str, Counter] = {}

    def read(self, result: str) -> None:
        """Count one reading of the file: ``ok`` or ``refused``."""
        self._reads[result].inc()

    def used(self, key: Key) -> None:
        """Count one request that ``key`` let in."""
        counter = self._uses_of.get(key.name)
        if counter is None:
            counter = self._uses_of[key.name] = self._uses.labels(key.name)
        counter.inc()

    def holds(self, keys: tuple[Key, ...]) -> None:
        """Show these keys and no others: names of former ones must not pile up."""
        names = {key.name for key in keys}
        for gone in self._uses_of.keys() - names:
            del self._uses_of[gone]
            self._uses.remove(gone)
        for name in names - self._uses_of.keys():
            self._uses_of[name] = self._uses.labels(name)


class KeyRing:
    """All keys that this process knows, as hashes.

    Args:
        admin: the admin key of the settings, if there is one; only its hash is kept.
        file: of API keys, if there is one; read by :meth:`load`.
        metrics: where readings and uses are counted.
    """

    def __init__(
        self, *, admin: SecretStr | None = None, file: Path | None = None, metrics: KeyMetrics
    ) -> None:
        self._admin = () if admin is None else (admin_key(admin.get_secret_value()),)
        self._file = None if file is None else WatchedFile(file, max_bytes=MAX_BYTES)
        self._metrics = metrics
        self._keys: tuple[Key, ...] = ()
        self.problem: str | None = None
        """Why the file as it is now was not taken."""
        self._hold(())

    @property
    def configured(self) -> bool:
        """Whether callers have to prove who they are to change anything."""
        return bool(self._admin) or self._file is not None

    @property
    def guards_all(self) -> bool:
        """Whether they have to for rewriting and metrics as well: there is a file of keys."""
        return self._file is not None

    @property
    def keys(self) -> tuple[Key, ...]:
        """The keys in force, the revoked and expired ones included."""
        return self._keys

    def find(self, given: bytes) -> Key | None:
        """The key that was sent, if it is one of :attr:`keys`, whether it opens anything or not."""
        return find(self._keys, given)

    def load(self) -> None:
        """Read the file for the first time; without one this does nothing.

        Raises:
            KeysFileInvalid: it is not there, or malformed.
        """
        try:
            self._read()
        except KeysInvalid as error:
            raise KeysFileInvalid(
                f"{error}; mend it ('requery keys check' checks it), or start without "
                "REQUERY_API_KEYS_FILE"
            ) from error

    def poll(self) -> bool:
        """Read the file if it has changed; whether there are new keys. Never raises."""
        before = self._keys
        try:
            self._read()
        except KeysInvalid as error:
            self._refuse(str(error))
        except Exception as error:  # noqa: BLE001 - following must go on
            self._refuse(type(error).__name__)
        return self._keys is not before

    @asynccontextmanager
    async def followed(self) -> AsyncIterator[None]:
        """Look for changes of the file several times a second while the block runs."""
        if self._file is None:
            yield
            return
        task = asyncio.create_task(self._follow(), name="keys")
        try:
            yield
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(_POLL_S)
            await asyncio.to_thread(self.poll)  # a slow disk must not hold up requests

    def _read(self) -> None:
        if self._file is None:
            return
        path = self._file.path
        try:
            content = self._file.changed()
            if content is None:
                return
            keys = read_keys(content, path.suffix.lower())
        except (FileUnusable, KeysInvalid) as error:
            raise KeysInvalid(f"keys file {path}: {error}") from error.__cause__
        self._hold(keys)
        if self.problem is not None:
            _log.info("keys_file_mended", file=str(path))
        self.problem = None
        self._metrics.read("ok")
        _log.info("keys_file_read", file=str(path), keys=len(keys))

    def _hold(self, keys: tuple[Key, ...]) -> None:
        self._keys = (*self._admin, *keys)
        self._metrics.holds(self._keys)

    def _refuse(self, problem: str) -> None:
        if problem == self.problem:
            return
        self.problem = problem
        self._metrics.read("refused")
        _log.error(
            "keys_file_refused",
            reason=problem,
            detail=f"the last good keys ({len(self._keys)}) stay in force; mend the file",
        )


def check_keys_file(path: Path) -> tuple[Key, ...]:
    """The keys of a file.

    Raises:
        KeysInvalid: it cannot be read or is malformed.
    """
    try:
        content = WatchedFile(path, max_bytes=MAX_BYTES).changed()
        return read_keys(content or b"", path.suffix.lower())
    except (FileUnusable, KeysInvalid) as error:
        raise KeysInvalid(f"keys file {path}: {error}") from error.__cause__
