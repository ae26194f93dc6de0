"""The two errors that an engine raises; both are part of the service's hierarchy of errors."""

from __future__ import annotations

from service.errors import EngineUnavailable, QueryTooLong

__all__ = ["EngineUnavailable", "QueryTooLong"]
