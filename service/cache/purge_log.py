"""The order of purges, so that a generation that began before a purge is not stored after it."""

from __future__ import annotations

from collections.abc import Iterable

_REMEMBERED = 4096


class PurgeLog:
    """Purges of this process, numbered.

    Args:
        remembered: most keys and prefixes whose last purge is remembered. A generation that began
            before a forgotten purge counts as purged.
    """

    def __init__(self, remembered: int = _REMEMBERED) -> None:
        self._remembered = remembered
        self._last: dict[str, int] = {}
        """Epoch of the last purge of each key or prefix, oldest first."""
        self._unknown = 0
        self.epoch = 0
        """The number of purges so far: take it when a generation begins."""

    def note(self, keys: Iterable[str]) -> None:
        """Note a purge of these keys, or of all keys with these prefixes."""
        self.epoch += 1
        for key in keys:
            self._last.pop(key, None)
            self._last[key] = self.epoch
        while len(self._last) > self._remembered:
            oldest = next(iter(self._last))
            self._unknown = self._last.pop(oldest)

    def since(self, epoch: int, *keys: str) -> bool:
        """Whether one of ``keys`` (a key and its prefix) was purged after ``epoch``."""
        return epoch < self._unknown or any(self._last.get(key, 0) > epoch for key in keys)
