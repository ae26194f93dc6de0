"""The two errors that an engine raises, by the names that :mod:`service.engine.protocol` uses.

They are members of the service's one hierarchy, so that the pipeline and the HTTP edge treat an
engine's error like any other without a second set of classes to map.
"""

from __future__ import annotations

from service.errors import EngineUnavailable, QueryTooLong

__all__ = ["EngineUnavailable", "QueryTooLong"]
