"""The candidates of one generation, and the verdicts on them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Self

from service.engine.protocol import Candidate
from service.filtering.candidates import Judged, Scored, Selection
from service.filtering.filters import CandidateFilter


@dataclass(slots=True)
class Generation:
    """All candidates of one query and version; the requests for that query share it.

    The verdicts and the default selection do not depend on a request. They are computed once, on
    first use.
    """

    candidates: tuple[Scored, ...]
    _verdicts: tuple[Judged, ...] | None = field(default=None, compare=False, repr=False)
    _default_selection: Selection | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, candidates: Iterable[Candidate]) -> Self:
        """The generation of the engine's candidates; a repeated correction gains their votes."""
        kept: list[Scored] = []
        for one in candidates:
            first = kept[0] if kept else None
            repeats = first is not None and first.votes > 1 and first.text == one.text
            if first is None or not repeats or one.relevance is None:
                kept.append(Scored(one.text, one.relevance, one.votes))
            else:
                relevance = max(first.relevance or 0.0, one.relevance)
                kept[0] = Scored(first.text, relevance, first.votes + one.votes)
        return cls(tuple(kept))

    @property
    def known_verdicts(self) -> tuple[Judged, ...] | None:
        """The verdicts, if they have been computed."""
        return self._verdicts

    def verdicts(self, query: str, candidate_filter: CandidateFilter) -> tuple[Judged, ...]:
        """The verdicts that do not depend on a request, by falling relevance.

        Args:
            query: in the version's normal form.
            candidate_filter: of the version.
        """
        if self._verdicts is None:
            self._verdicts = candidate_filter.judge(query, self.candidates)
        return self._verdicts

    def default_selection(self, query: str, candidate_filter: CandidateFilter) -> Selection:
        """The selection with the version's own settings and without blocked terms."""
        if self._default_selection is None:
            verdicts = self.verdicts(query, candidate_filter)
            self._default_selection = candidate_filter.select(verdicts)
        return self._default_selection
