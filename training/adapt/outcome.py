"""What a shop's version answers, tried on queries: the settings chosen, and their effect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from model_store.manifest import SpellingSpec
from model_store.store import StoredVersion
from service.engine.corrected import CorrectedEngine
from service.engine.spelling import Corrector
from service.engine.synonyms import Synonyms
from service.filtering.catalogue import TermIndex
from service.filtering.filters import CandidateFilter
from training.adapt.catalogue import Catalogue
from training.adapt.evidence import Evidence
from training.adapt.language import Language, version_brands
from training.adapt.queries import depth_of, known_words, made_queries
from training.adapt.report import dropped, examples
from training.adapt.synonyms import without_development
from training.adapt.trial import (
    Answers,
    Judge,
    Setting,
    Way,
    choose,
    differences,
    draw_candidates,
    figures,
    halves,
)
from training.data.search import SearchIndex

FEW = 60
"""Queries below which nothing is chosen by them."""
_FREQUENT = 100


@dataclass(frozen=True, slots=True)
class Shop:
    """What a version is adapted to, and from which one.

    Attributes:
        catalogue: the products.
        evidence: what is known of searches; may be empty.
        base: the version before.
        folder: of the version before, its files checked.
        language: learnt from the products.
        spelling: settings of the new corrector.
        index: the shop's search.
        synonyms: term -> other terms.
        terms: what rewrites are looked up in when they are served.
    """

    catalogue: Catalogue
    evidence: Evidence
    base: StoredVersion
    folder: Path
    language: Language
    spelling: SpellingSpec
    index: SearchIndex
    synonyms: Mapping[str, Sequence[str]]
    terms: TermIndex | None


def try_shop(shop: Shop, most: int, work: Path) -> dict[str, Any] | None:
    """Choose threshold and number of rewrites on half of the queries; measure on the other half.

    Args:
        shop: what is adapted.
        most: queries.
        work: folder that keeps what the model was asked.

    Returns:
        figures for the report; ``None`` if there is no query to try.

    Raises:
        EngineUnavailable: the engine could not start.
        ModelStoreError: the weights cannot be merged, or the disk is full.
    """
    index = shop.index
    judge = Judge(index, depth_of(len(shop.catalogue)))
    queries = shop.evidence.known(shop.catalogue.titles, judge.depth)[:most]
    made = len(queries) < FEW
    if made:
        queries = made_queries(shop.catalogue, index, most)
    frequent = [query for query, _ in shop.evidence.searches.most_common(_FREQUENT)]
    if not queries:
        return None
    answers = _ask(shop, list(dict.fromkeys([*(one.text for one in queries), *frequent])), work)
    spec = shop.base.manifest.filter
    own = Setting(spec.min_relevance, spec.max_rewrites)
    chosen, reporting = own, queries
    if len(queries) >= FEW:
        choosing, reporting = halves(queries)
        chosen = choose(judge, choosing, answers["adapted"], own, made=made)
    settings = {"from": own, "adapted": chosen}
    effects = {
        name: [judge.effect(one, answers[name](one.text, setting)) for one in reporting]
        for name, setting in settings.items()
    }
    by_kind: dict[str, list[Any]] = {one.kind: [] for one in reporting}
    for one, effect in zip(reporting, effects["adapted"], strict=True):
        by_kind[one.kind].append(effect)
    return {
        "simulated": made,
        "depth": judge.depth,
        "queries": known_words(queries),
        "settings": {name: asdict(setting) for name, setting in settings.items()},
        "figures": {
            **{name: figures(rows) for name, rows in effects.items()},
            "difference": differences(effects["adapted"], effects["from"]),
        },
        "kinds": {kind: figures(rows) for kind, rows in sorted(by_kind.items())},
        "verdicts": dropped(reporting, answers["adapted"], chosen),
        "searches": _traffic(shop.evidence.searches, frequent, answers["adapted"], chosen, index),
        "examples": examples(reporting, judge, answers["adapted"], chosen, shop.catalogue.titles),
    }


def _ask(shop: Shop, queries: Sequence[str], work: Path) -> dict[str, Answers]:
    """Answers of the version before, and of the adapted one."""
    before = shop.base.manifest
    old = None if before.spelling is None else Corrector.of(before.spelling, shop.folder)
    trust = 0.0 if before.spelling is None else before.spelling.trust
    # Made queries in other words come from pairs of the development fold.
    synonyms = Synonyms(without_development(shop.synonyms))
    corrector = shop.language.corrector(shop.spelling)
    ways: dict[str, Way] = {
        "from": (lambda engine: engine) if old is None else partial(
            CorrectedEngine, corrector=old, trust=trust
        ),
        "adapted": partial(
            CorrectedEngine, corrector=corrector, trust=shop.spelling.trust, synonyms=synonyms
        ),
    }  # fmt: skip
    drawn = draw_candidates(shop.base, ways, queries, work)
    spec, fold = before.filter, before.prompt.fold_case
    old_filter = CandidateFilter(spec, fold_case=fold, brands=version_brands(before, shop.folder))
    new_filter = CandidateFilter(
        spec, fold_case=fold, brands=shop.language.brands, catalogue=shop.terms
    )
    return {
        "from": Answers(drawn["from"], old_filter),
        "adapted": Answers(drawn["adapted"], new_filter),
    }


def _traffic(
    searches: Counter[str],
    frequent: Sequence[str],
    answers: Answers,
    setting: Setting,
    index: SearchIndex,
) -> Mapping[str, Any]:
    """Of the most frequent searches, by how often each was asked: answers, and dead ends saved.

    A dead end is a query whose words no product holds all.
    """
    total = sum(searches[query] for query in frequent)
    answered = dead = saved = 0
    for query in frequent:
        rewrites = answers(query, setting)
        answered += searches[query] * bool(rewrites)
        if not index.matches_all(query):
            dead += searches[query]
            saved += searches[query] * any(index.matches_all(text) for text in rewrites)
    return {"queries": len(frequent), "searches": total, "answered": answered, "dead_ends": dead,
            "dead_ends_saved": saved}  # fmt: skip
