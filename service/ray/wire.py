"""Messages over a deployment handle: plain values, also for errors because Ray would wrap them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from service.engine.protocol import Candidate
from service.errors import EngineUnavailable, QueryTooLong, RequeryError

Tokens = tuple[tuple[int, int], ...]
"""Prompt and generated tokens of each engine request that has finished since the last message.

They belong to the version, not to the call that carries them.
"""


@dataclass(frozen=True, slots=True)
class Item:
    """One message of a generation.

    Attributes:
        candidate: one that has finished; ``None`` for a sign of life of a slow engine.
        tokens: see :data:`Tokens`.
    """

    candidate: Candidate | None
    tokens: Tokens = ()


@dataclass(frozen=True, slots=True)
class Tagged:
    """Relevance in [0, 1] of each pair, in order."""

    relevance: list[float]
    tokens: Tokens = ()


@dataclass(frozen=True, slots=True)
class Refusal:
    """An error of the engine."""

    kind: Literal["too_long", "unavailable"]
    detail: str

    @classmethod
    def of(cls, error: QueryTooLong | EngineUnavailable) -> Refusal:
        """The message for ``error``."""
        return cls("too_long" if isinstance(error, QueryTooLong) else "unavailable", str(error))

    def error(self) -> RequeryError:
        """The error that it stands for."""
        return (QueryTooLong if self.kind == "too_long" else EngineUnavailable)(self.detail)
