"""The answer to one rewrite request."""

from __future__ import annotations

from typing import Literal, NamedTuple

from service.filtering.candidates import Selection

Status = Literal["ok", "partial", "timeout", "none", "fallback"]
Source = Literal["engine", "memory", "redis", "coalesced", "override", "none"]


class Answer(NamedTuple):
    """The answer to one rewrite request."""

    query: str
    """In the version's normal form."""
    version: str
    selection: Selection
    status: Status
    source: Source
