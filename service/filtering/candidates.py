"""What becomes of a generated rewrite on its way through the pipeline."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple, Self

from service.engine.protocol import Candidate


class Verdict(StrEnum):
    """Why a candidate was taken or rejected. Stable: metrics label, and reason in ``explain``."""

    ACCEPTED = "accepted"
    UNFINISHED = "unfinished"
    """Ran out of tokens before its tag."""
    MALFORMED = "malformed"
    """Empty, too long, without a letter or digit, broken text, or one word over and over."""
    ECHO = "echo"
    """The query again, but for case, punctuation or a plural."""
    DUPLICATE = "duplicate"
    """The same (in that sense) as a candidate with a higher relevance."""
    LOST_NUMBER = "lost_number"
    """Drops or changes a number or unit of the query."""
    LOST_SIZE = "lost_size"
    """Drops or changes a size word (XL, queen) of the query."""
    ADDED_NUMBER = "added_number"
    """Has a number that the query has not."""
    LOST_BRAND = "lost_brand"
    """Drops a brand of the query."""
    IRRELEVANT = "irrelevant"
    """Its relevance is below the threshold of the request."""
    BLOCKED_TERM = "blocked_term"
    """Holds a term that the relevance team has blocked."""
    SURPLUS = "surplus"
    """Good enough, and better or more different ones filled the answer."""


class Scored(NamedTuple):
    """A candidate as the cache holds it: all that is needed to filter it again."""

    text: str
    """As decoded, not yet normalised."""
    relevance: float | None
    """P(relevant) in [0, 1]; ``None`` if the generation never reached its tag."""


class Judged(NamedTuple):
    """A candidate and what the filters say of it."""

    text: str
    """In the version's normal form."""
    relevance: float | None
    verdict: Verdict
    words: frozenset[str] | None
    """Folded words, for diversity; ``None``: not looked for yet."""
    votes: int = 1
    """Candidates of the generation that say the same, this one included."""


class Selection(NamedTuple):
    """What one request gets, and what it does not, both by falling relevance."""

    accepted: tuple[Judged, ...]
    rejected: tuple[Judged, ...]


@dataclass(slots=True)
class Generation:
    """All scored candidates of one query and version; complete, and shared by all callers."""

    candidates: tuple[Scored, ...]
    judged: tuple[Judged, ...] | None = field(default=None, compare=False)
    """Verdicts that depend on no request, kept here so that a cache hit need not judge again."""
    usual: Selection | None = field(default=None, compare=False)
    """The answer to a request that leaves every choice to the version, while no term is blocked."""

    @classmethod
    def of(cls, candidates: Iterable[Candidate]) -> Self:
        """The part of the engine's candidates that is worth keeping."""
        return cls(tuple(Scored(c.text, c.relevance) for c in candidates))
