"""Filters the candidates of a generation (step 8 of the pipeline).

In two parts, so that a cache hit is cheap: the verdicts of :meth:`CandidateFilter.judge` do not
depend on a request and are kept with the generation; :meth:`CandidateFilter.select` applies the
parameters of one request.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise

from model_store.manifest import FilterSpec
from model_store.text import MAX_QUERY_CHARS, normalise
from service.filtering.audience import keeps_audience
from service.filtering.candidates import Judged, Scored, Selection, Verdict
from service.filtering.catalogue import TermIndex
from service.filtering.guards import (
    Brands,
    adds_numbers,
    adds_sizes,
    keeps_codes,
    keeps_numbers,
    keeps_sizes,
)
from service.filtering.polarity import keeps_polarity
from service.filtering.words import SMALL_WORDS, words

DIVERSITY = 0.3
"""Weight of diversity against the score, in [0, 1]."""

AGREEMENT = 0.02
"""Added to a candidate's relevance for each further vote for the same words.

Relevance alone favours the wordiest rewrite, because it repeats the query. What the model generates
repeatedly is more often right. Chosen on the development fold of sft-1, where it raised the gain in
recall by 0.000 to 0.004 over five mixes of temperatures."""

RULES = 3
"""Of :meth:`CandidateFilter.judge`; raised when a candidate could get another verdict than before.

Verdicts are kept in Redis, where releases meet."""

_MAX_RUN = 2
"""A word may stand twice in a row ("night night"); a third time is a stuck decoder."""


_Guard = tuple[Callable[[str, str], bool], Verdict]
"""Whether a rewrite breaks a rule, given the query and the rewrite, and the verdict if it does."""


def _not(keeps: Callable[[str, str], bool]) -> Callable[[str, str], bool]:
    return lambda query, rewrite: not keeps(query, rewrite)


_NUMBERS: tuple[_Guard, ...] = (
    (_not(keeps_numbers), Verdict.LOST_NUMBER),
    (_not(keeps_sizes), Verdict.LOST_SIZE),
    (_not(keeps_codes), Verdict.LOST_CODE),
    (adds_numbers, Verdict.ADDED_NUMBER),
    (adds_sizes, Verdict.ADDED_SIZE),
)
_MEANING: tuple[_Guard, ...] = (
    (_not(keeps_polarity), Verdict.CHANGED_POLARITY),
    (_not(keeps_audience), Verdict.OTHER_AUDIENCE),
)


class CandidateFilter:
    """The filters of one version.

    Args:
        spec: thresholds and switches of the version's manifest.
        fold_case: the version's normal form.
        brands: brands that must survive; none by default.
        catalogue: what rewrites are looked up in; by default none is.
    """

    def __init__(
        self,
        spec: FilterSpec,
        *,
        fold_case: bool,
        brands: Iterable[str] = (),
        catalogue: TermIndex | None = None,
    ) -> None:
        self.spec = spec
        self._catalogue = catalogue
        self._fold_case = fold_case
        brand = (_not(Brands(brands).keeps), Verdict.LOST_BRAND)
        expansion = ((expands, Verdict.EXPANSION),) if spec.drop_expansions else ()
        numbers = _NUMBERS if spec.keep_numbers else ()
        self._guards: tuple[_Guard, ...] = (*numbers, brand, *_MEANING, *expansion)

    def judge(self, query: str, candidates: Iterable[Scored]) -> tuple[Judged, ...]:
        """The verdicts that do not depend on a request, by falling relevance.

        Args:
            query: the query in the version's normal form.
            candidates: in any order.
        """
        ranked = sorted(candidates, key=_rank)
        votes: Counter[tuple[str, ...]] = Counter()
        query_words = words(query)
        look_up = None if self._catalogue is None else self._catalogue.judging(query_words)
        found: list[tuple[tuple[str, ...], Judged]] = []
        for scored in ranked:
            text = normalise(scored.text, fold_case=self._fold_case)
            parts = words(text)
            verdict = self._verdict(query, text, parts, scored.relevance)
            if verdict is Verdict.ACCEPTED:
                if parts == query_words:
                    verdict = Verdict.ECHO
                elif parts in votes:
                    verdict = Verdict.DUPLICATE
                elif look_up is not None:
                    verdict = look_up(parts)
                votes[parts] += scored.votes
            one = Judged(text, scored.relevance, verdict, frozenset(parts), scored.votes)
            found.append((parts, one))
        return tuple(
            one._replace(agreement=votes[parts]) if one.verdict is Verdict.ACCEPTED else one
            for parts, one in found
        )

    def select(
        self,
        judged: Sequence[Judged],
        *,
        max_rewrites: int | None = None,
        min_relevance: float | None = None,
        blocked: Callable[[str], bool] | None = None,
    ) -> Selection:
        """Choose the answer to one request; ``None`` means the version's own setting.

        Args:
            judged: the verdicts of :meth:`judge`.
            max_rewrites: most rewrites in the answer.
            min_relevance: least relevance.
            blocked: whether a text has a blocked term. Applied before the choice, so that the
                next best take the place of blocked candidates.
        """
        limit = self.spec.max_rewrites if max_rewrites is None else max_rewrites
        threshold = self.spec.min_relevance if min_relevance is None else min_relevance
        fit: list[Judged] = []
        rejected: list[Judged] = []
        for one in judged:
            if one.verdict is not Verdict.ACCEPTED:
                rejected.append(one)
            elif _relevance(one) < threshold:
                rejected.append(one._replace(verdict=Verdict.IRRELEVANT))
            elif blocked is not None and blocked(one.text):
                rejected.append(one._replace(verdict=Verdict.BLOCKED_TERM))
            else:
                fit.append(one)
        if len(fit) <= limit:
            return Selection(tuple(fit), tuple(rejected))
        chosen = _diverse(fit, limit)
        accepted = [one for i, one in enumerate(fit) if i in chosen]
        surplus = [
            one._replace(verdict=Verdict.SURPLUS) for i, one in enumerate(fit) if i not in chosen
        ]
        rejected = sorted([*rejected, *surplus], key=_relevance, reverse=True)
        return Selection(tuple(accepted), tuple(rejected))

    def pinned(
        self,
        rewrites: Sequence[str],
        *,
        max_rewrites: int | None = None,
        blocked: Callable[[str], bool] | None = None,
    ) -> Selection:
        """The selection of pinned rewrites: in their order, with relevance 1.

        Blocked terms and the limit apply; thresholds and guards do not.

        Args:
            rewrites: as pinned.
            max_rewrites: most rewrites in the answer; ``None``: all, because the version's own
                setting is for its own candidates.
            blocked: whether a text has a blocked term.
        """
        limit = len(rewrites) if max_rewrites is None else max_rewrites
        accepted: list[Judged] = []
        rejected: list[Judged] = []
        for text in rewrites:
            one = Judged(text, 1.0, Verdict.ACCEPTED, frozenset())
            if blocked is not None and blocked(text):
                rejected.append(one._replace(verdict=Verdict.BLOCKED_TERM))
            elif len(accepted) == limit:
                rejected.append(one._replace(verdict=Verdict.SURPLUS))
            else:
                accepted.append(one)
        return Selection(tuple(accepted), tuple(rejected))

    def _verdict(
        self, query: str, text: str, parts: tuple[str, ...], relevance: float | None
    ) -> Verdict:
        """The verdict on one candidate by itself."""
        if relevance is None:
            return Verdict.UNFINISHED
        if _malformed(text, parts) or _stutters(query, parts):
            return Verdict.MALFORMED
        for breaks, what in self._guards:
            if breaks(query, text):
                return what
        return Verdict.ACCEPTED


def _rank(scored: Scored) -> tuple[bool, float, str, int]:
    return scored.relevance is None, -(scored.relevance or 0.0), scored.text, -scored.votes


def _malformed(text: str, parts: tuple[str, ...]) -> bool:
    # U+FFFD: the tokens end within a character.
    if not parts or len(text) > MAX_QUERY_CHARS or "\ufffd" in text:
        return True
    return any(
        len(set(parts[i : i + _MAX_RUN + 1])) == 1 and parts[i][0].isalpha()
        for i in range(len(parts) - _MAX_RUN)
    )


def expands(query: str, rewrite: str) -> bool:
    """Whether ``rewrite`` has all words of ``query`` and more ("coffee table furniture").

    Order and small words do not count: "paint by behr" says no more than "behr paint".
    """
    asked, said = (
        Counter(word for word in words(text) if word not in SMALL_WORDS)
        for text in (query, rewrite)
    )
    return asked < said


def _stutters(query: str, parts: tuple[str, ...]) -> bool:
    """Whether a word stands twice in a row, other than in the query ("cordless cordless phone")."""
    twice = {a for a, b in pairwise(parts) if a == b and a.isalpha()}
    return bool(twice) and not twice <= {a for a, b in pairwise(words(query)) if a == b}


def _relevance(one: Judged) -> float:
    return -1.0 if one.relevance is None else one.relevance


def _score(one: Judged) -> float:
    """The score that decides between acceptable candidates."""
    return _relevance(one) + AGREEMENT * (one.agreement - 1)


def _diverse(fit: Sequence[Judged], limit: int) -> set[int]:
    """Indexes of ``limit`` candidates by maximal marginal relevance.

    Greedy: the best by score first, then each time the one with the highest
    ``(1 - DIVERSITY) * score - DIVERSITY * (largest Jaccard similarity to one chosen)``.
    """
    first = max(range(len(fit)), key=lambda i: _score(fit[i]))
    chosen = [first]
    folded = [frozenset(words(one.text)) if one.words is None else one.words for one in fit]
    likeness = [_jaccard(each, folded[first]) for each in folded]
    while len(chosen) < limit:
        best = max(
            (i for i in range(len(fit)) if i not in chosen),
            key=lambda i: (1 - DIVERSITY) * _score(fit[i]) - DIVERSITY * likeness[i],
        )
        chosen.append(best)
        for i, each in enumerate(folded):
            likeness[i] = max(likeness[i], _jaccard(each, folded[best]))
    return set(chosen)


def _jaccard(left: frozenset[str], right: frozenset[str]) -> float:
    union = len(left | right)
    return len(left & right) / union if union else 1.0
