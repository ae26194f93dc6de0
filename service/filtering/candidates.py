"""Candidates on their way through the filters: scored, judged, selected."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple


class Verdict(StrEnum):
    """Why a candidate was accepted or rejected. Stable: metric label and ``reason`` in explain."""

    ACCEPTED = "accepted"
    UNFINISHED = "unfinished"
    """It ran out of tokens before its tag."""
    MALFORMED = "malformed"
    """Empty, too long, without a letter or digit, broken text, or one word over and over."""
    ECHO = "echo"
    """The query itself, apart from case, punctuation or plurals."""
    DUPLICATE = "duplicate"
    """The same words (in that sense) as a candidate of higher relevance."""
    LOST_NUMBER = "lost_number"
    """Drops or changes a number or unit of the query."""
    LOST_SIZE = "lost_size"
    """Drops or changes a size word (XL, queen) of the query."""
    ADDED_NUMBER = "added_number"
    """Adds a number that the query does not have."""
    ADDED_SIZE = "added_size"
    """Has a size word that the query has not."""
    LOST_CODE = "lost_code"
    """Drops or changes a code (DCD771C2, WD-40, E26) of the query."""
    CHANGED_POLARITY = "changed_polarity"
    """Drops, turns round or adds an exclusion (without, no, non-, un-, -less, -free)."""
    OTHER_AUDIENCE = "other_audience"
    """Is for somebody else than the query says (men, women, kids, dogs, ...)."""
    EXPANSION = "expansion"
    """Says the whole query and adds words that nobody asked for."""
    LOST_BRAND = "lost_brand"
    """Drops a brand of the query."""
    IRRELEVANT = "irrelevant"
    """Its relevance is below the threshold of the request."""
    NO_RESULTS = "no_results"
    """Finds no product of the version's catalogue."""
    NO_GAIN = "no_gain"
    """Finds only products of the catalogue that the query finds."""
    BLOCKED_TERM = "blocked_term"
    """Contains a blocked term."""
    SURPLUS = "surplus"
    """Good enough, but better or more diverse candidates filled the answer."""


class Scored(NamedTuple):
    """A candidate as the cache keeps it: everything that the filters need."""

    text: str
    """As decoded, not normalised."""
    relevance: float | None
    """P(relevant) in [0, 1]; ``None`` if the generation never reached its tag."""
    votes: int = 1
    """Generated candidates that it stands for; a spelling correction stands for several."""


class Judged(NamedTuple):
    """A candidate and the verdict of the filters."""

    text: str
    """In the version's normal form."""
    relevance: float | None
    verdict: Verdict
    words: frozenset[str] | None
    """Folded words, for diversity; ``None``: not computed yet."""
    votes: int = 1
    """As in :class:`Scored`."""
    agreement: int = 1
    """Votes of all candidates with the same words, its own included; 1 unless accepted."""


class Selection(NamedTuple):
    """The accepted and the rejected candidates of one answer, both by falling relevance."""

    accepted: tuple[Judged, ...]
    rejected: tuple[Judged, ...]
