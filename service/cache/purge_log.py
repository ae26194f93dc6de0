"""What has been purged, and when: so that a generation that was begun before is not kept after."""

from __future__ import annotations

from collections.abc import Iterable

_REMEMBERED = 4096


class PurgeLog:
    """Purges of this process, numbered.

    Args:
        remembered: keys and prefixes of which it is known when they were purged last. What was
            begun before a purge that is no longer known counts as purged.
    """

    def __init__(self, remembered: int = _REMEMBERED) -> None:
        self._remembered = remembered
        self._last: dict[str, int] = {}
        """When each was purged, longest ago first."""
        self._unknown = 0
        self.epoch = 0
        """Grows with every purge; what begins now may be kept until it is purged later."""

    def note(self, keys: Iterable[str]) -> None:
        """These keys, or all that start with these prefixes, are being purged."""
        self.epoch += 1
        for key in keys:
            self._last.pop(key, None)
            self._last[key] = self.epoch
        while len(self._last) > self._remembered:
            oldest = next(iter(self._last))
            self._unknown = self._last.pop(oldest)

    def since(self, epoch: int, *keys: str) -> bool:
        """Whether one of ``keys`` (a key, and the prefix that it has) was purged after that."""
        return epoch < self._unknown or any(self._last.get(key, 0) > epoch for key in keys)
