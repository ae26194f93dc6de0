"""How full Redis is, and whether more may be written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

_KEY_BYTES = 200
"""Memory of an entry in Redis besides its value: key, object headers, expiry."""
_RESUME = 0.95
"""Share of the bound below which writes begin again."""


class Reading(NamedTuple):
    """Sums over all masters."""

    used_bytes: int
    keys: int
    bounded: bool
    """Whether each has a ``maxmemory``."""
    evicts: bool
    """Whether each evicts entries when it is full."""


class Occupancy:
    """Memory of Redis as last read, plus what this process has written since.

    It covers everything in that Redis, and other replicas write too. An exact bound needs the
    server's own ``maxmemory`` with ``allkeys-lru`` or ``allkeys-lfu``; without it, this one stops
    writes within one reading of the bound.

    Args:
        max_bytes: bound over all masters; ``None`` is none.
    """

    def __init__(self, max_bytes: int | None) -> None:
        self._max_bytes = math.inf if max_bytes is None else max_bytes
        self.used_bytes = math.nan
        self.keys = math.nan
        self.full = False

    def read(self, reading: Reading) -> None:
        """Note a new reading."""
        self.used_bytes, self.keys = float(reading.used_bytes), float(reading.keys)
        if self.used_bytes >= self._max_bytes:
            self.full = True
        elif self.used_bytes < _RESUME * self._max_bytes:
            self.full = False

    def wrote(self, value_bytes: int) -> None:
        """Add the memory of one entry."""
        self.used_bytes += value_bytes + _KEY_BYTES
        if self.used_bytes >= self._max_bytes:
            self.full = True


def reading(nodes: Sequence[tuple[dict[str, Any], int]]) -> Reading:
    """Add up ``INFO memory`` and ``DBSIZE`` of each master."""
    infos = [info for info, _ in nodes]
    return Reading(
        used_bytes=sum(int(info["used_memory"]) for info in infos),
        keys=sum(keys for _, keys in nodes),
        bounded=all(int(info.get("maxmemory", 0)) > 0 for info in infos),
        evicts=all(info.get("maxmemory_policy", "noeviction") != "noeviction" for info in infos),
    )
