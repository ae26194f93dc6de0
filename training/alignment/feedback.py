"""Rewards of a group of samples, by the search engine and the judge."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from model_store.manifest import FilterSpec
from service.filtering.candidates import Scored, Verdict
from service.filtering.filters import CandidateFilter
from training import rewards
from training.data.pairs import World, is_echo
from training.data.schema import GRADE_ENGAGED
from training.data.search import fuse, recall, stems
from training.judge.first_results import FirstResults, Score
from training.rewards import DROPPED, Rewards

BROAD_SHARE = 0.02
"""Share of all titles that must hold the rarest word of a text for it to be broad."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A rewrite that the model sampled: its text and tag (``None``: it did not end)."""

    text: str
    tag: bool | None


class Feedback:
    """Rewards of samples.

    Args:
        world: the catalogue, its search engine and the grades.
        score: the judge.
        first: number of results that the judge scores.
        brands: of the catalogue; a rewrite must keep the query's.
        fold_case: of the version's normal form.
    """

    def __init__(
        self,
        world: World,
        score: Score,
        *,
        first: int,
        brands: Sequence[str] = (),
        fold_case: bool = True,
    ) -> None:
        self._world = world
        self._first = FirstResults(world, score, first)
        # Drops rewrites for their form, as the service does, without its threshold of relevance.
        form = FilterSpec(min_relevance=0.0, max_rewrites=32)
        self._filter = CandidateFilter(form, fold_case=fold_case, brands=brands)
        self._broad = BROAD_SHARE * len(world.index)
        self._results = lru_cache(maxsize=1 << 14)(world.search)

    def reward(self, query: str, group: Sequence[Sample]) -> list[Rewards]:
        """Rewards of one query's samples; the query must have a relevant product."""
        texts = [s.text for s in group]
        shown = {s.text for s in group if s.text and s.tag is not None}
        usable = {t for t in shown if self._usable(query, t)}
        need = self._world.meant(query)
        self._first.prepare((need, text) for text in {query, *usable})
        copies = Counter(texts)
        return [
            self._one(query, sample, copies[sample.text], len(group))
            if sample.text in usable and sample.tag is not None
            else DROPPED
            for sample in group
        ]

    def prepare(self, groups: Sequence[tuple[str, Sequence[Sample]]]) -> None:
        """Let the judge score all groups at once, which is faster than one by one."""
        self._first.prepare(
            (self._world.meant(query), text)
            for query, group in groups
            for text in {query, *(s.text for s in group if s.tag is not None)}
            if text == query or self._usable(query, text)
        )

    def _one(self, query: str, sample: Sample, copies: int, group: int) -> Rewards:
        world, text = self._world, sample.text
        plain, results = world.plain(query), self._results(text)
        wanted = world.relevant[query]
        base, own = recall(plain, wanted), recall(results, wanted)
        fused = recall(fuse([plain, results], world.depth), wanted)
        # The need is the query in its corrected spelling.
        need = world.meant(query)
        scores = self._first.each(need, text)
        first, plain_first = rewards.relevance(list(scores.values())), self._first(need, query)
        tag = bool(sample.tag)
        truth = rewards.verdict(
            own=own, base=base, change=fused - base, first=first, plain_first=plain_first
        )
        agreed = rewards.agreement(tag, truth)
        if not tag:
            # It is never shown, so its results have no value.
            return Rewards(agreement=agreed)
        engaged = [p for p, g in world.grades[query].items() if g >= GRADE_ENGAGED]
        found = Rewards(
            increment=rewards.increment(results, plain, engaged),
            gain=rewards.gain(fused, base),
            agreement=agreed,
        )
        form = rewards.rules(
            query,
            text,
            copies=copies,
            group=group,
            known=self._known(query, text),
            broad=self._is_broad(query, text),
            added=set(stems(query)) < set(stems(text)),
        )
        if form == 0 or (truth is False and fused <= base):
            return found
        known = set(plain)
        return replace(
            found,
            relevance=rewards.met(first, rewards.SAME * max(plain_first, rewards.FAIR)),
            productivity=rewards.met(
                rewards.productivity(results, engaged),
                rewards.KEEP_OWN * rewards.productivity(plain, engaged),
            ),
            discovery=rewards.discovery(
                [None if p in known else s for p, s in scores.items()], plain_first
            ),
            rules=form,
        )

    def _usable(self, query: str, text: str) -> bool:
        (judged,) = self._filter.judge(query, [Scored(text, 1.0)])
        return judged.verdict is Verdict.ACCEPTED and not is_echo(query, text)

    def _known(self, query: str, text: str) -> float:
        given, words = set(query.split()), text.split()
        rarest = self._world.index.rarest_term
        return sum(word in given or rarest(word) > 0 or not stems(word) for word in words) / len(
            words
        )

    def _is_broad(self, query: str, text: str) -> bool:
        rarest = self._world.index.rarest_term
        return rarest(text) > self._broad and rarest(text) > rarest(query)
