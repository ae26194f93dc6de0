from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load, save

from model_store.errors import InvalidVersion
from model_store.manifest import FilterSpec
from service.filtering import catalogue
from service.filtering.candidates import Scored, Verdict
from service.filtering.catalogue import BYTES_PER_PRODUCT, TermIndex, build_term_index
from service.filtering.filters import CandidateFilter
from service.filtering.words import SMALL_WORDS, words
from service.versions.version import ModelVersion
from tests.support.engine import ScriptedEngine
from tests.support.service import Serve
from tests.support.versions import Engines, make_manifest

NOW = datetime(2026, 11, 28, tzinfo=UTC)
SHOP = (
    "Avocado Oil, 16 oz.",
    "Oat Milk",
    "Organic Oat Milk with Vanilla",
    "Milk",
    "Unsweetened Peanut Butter",
    "Blue Garden Hose 50 ft",
    "\u725b\u5976 1L",
)


def index_of(folder: Path, titles: list[str] | tuple[str, ...]) -> TermIndex:
    path = folder / catalogue.INDEX_FILE
    spec = build_term_index(iter(titles), path, made_at=NOW)
    assert (spec.index_file, spec.products, spec.made_at) == (path.name, len(titles), NOW)
    return TermIndex.load(path, spec.products)


@pytest.fixture
def shop(tmp_path: Path) -> TermIndex:
    return index_of(tmp_path, SHOP)


@pytest.mark.parametrize(
    ("query", "rewrite", "verdict"),
    [
        ("avacado oil", "avocado oil", "accepted"),  # the query finds nothing
        ("avacado oil", "avokado oil", "no_results"),
        ("oat milk", "oat drink", "no_results"),
        ("oat drink", "oat milk", "accepted"),
        ("milk", "oat milk", "no_gain"),
        ("milk for oat", "oat milk", "no_gain"),
        ("oat milk", "milk", "accepted"),
        ("peanut butter no sugar", "unsweetened peanut butter", "accepted"),
        ("hose", "garden hose without blue", "no_gain"),  # one that negates may miss
        ("watering hose", "blue garden hose pipe", "accepted"),  # one of four may miss
        ("watering hose", "blue garden hose long pipe", "no_results"),  # two may not
        ("hose", "blue garden hose 50 ft long", "accepted"),
        ("for the", "oat milk", "accepted"),
        ("oat milk", "with", "accepted"),
        ("milk", "\u725b\u5976\u5496\u5561", "accepted"),
        ("milk", "a b c d e f g h i j", "accepted"),
    ],
)
def test_verdicts(shop: TermIndex, query: str, rewrite: str, verdict: str) -> None:
    assert shop.judging(words(query))(words(rewrite)) == verdict


def test_the_filter_looks_up_what_its_other_rules_accept(shop: TermIndex) -> None:
    filters = CandidateFilter(FilterSpec(max_rewrites=1), fold_case=True, catalogue=shop)
    texts = ["oats milks", "oat drink", "oat drinks", "milk", "organic milk 2"]
    judged = filters.judge("oat milk", [Scored(t, 0.9 - i / 10) for i, t in enumerate(texts)])
    assert [one.verdict for one in judged] == [
        Verdict.ECHO,
        Verdict.NO_RESULTS,
        Verdict.DUPLICATE,
        Verdict.ACCEPTED,
        Verdict.ADDED_NUMBER,
    ]


WORDS = st.sampled_from(["oat", "milk", "of", "tea", "no", *(f"w{chr(97 + i)}" for i in range(12))])
TEXTS = st.lists(WORDS, max_size=6).map(" ".join)


@given(titles=st.lists(TEXTS, min_size=1, max_size=300), query=TEXTS, rewrite=TEXTS)
def test_as_sets_of_products_have_it(
    tmp_path_factory: pytest.TempPathFactory, titles: list[str], query: str, rewrite: str
) -> None:
    having = [set(words(title)) for title in titles]
    if not any(having):
        return
    index = index_of(tmp_path_factory.mktemp("shop"), titles)

    def found(text: set[str]) -> set[int]:
        return {i for i, title in enumerate(having) if text <= title}

    asked = set(words(query)) - SMALL_WORDS
    said = set(words(rewrite)) - SMALL_WORDS - {"no"}
    assert index.count(rewrite) == len(found(set(words(rewrite)) - SMALL_WORDS))
    verdict = Verdict.ACCEPTED
    if said and not found(said):
        near = len(said) > 3 and any(found(said - {word}) for word in said)
        verdict = Verdict.ACCEPTED if near else Verdict.NO_RESULTS
    elif said and asked and found(said) <= found(asked):
        verdict = Verdict.NO_GAIN
    assert index.judging(words(query))(words(rewrite)) == verdict


def test_many_products_and_long_titles_keep_within_their_bytes(tmp_path: Path) -> None:
    titles = [f"common c{chr(97 + i % 7)} t{'abcdefghij'[i % 10]} " + " ".join(
        f"x{chr(97 + j)}{'abcdefghij'[(i * (j + 1)) % 10]}" for j in range(20)
    ) for i in range(20_000)]  # fmt: skip
    index = index_of(tmp_path, titles)
    size = (tmp_path / catalogue.INDEX_FILE).stat().st_size
    assert size < BYTES_PER_PRODUCT * len(titles)
    assert index.count("common") == 20_000
    assert index.count("ca common ta") == sum(i % 70 == 0 for i in range(20_000))


def test_titles_that_are_too_long_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalogue, "_FIXED_BYTES", 400)
    letters = "abcdefghijklmnopqrstuvwxyz"
    titles = [f"first {' '.join(f'{a}{b}{c}' for c in letters)}" for a in letters for b in letters]
    index = index_of(tmp_path, titles)
    assert (index.count("first"), index.count("aaa"), index.count("aaz")) == (676, 1, 0)


def test_a_catalogue_without_words_or_with_too_many_products_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidVersion, match="no title"):
        index_of(tmp_path, ["", "!!!"])
    monkeypatch.setattr(catalogue, "MAX_PRODUCTS", 2)
    with pytest.raises(InvalidVersion, match="more than 2"):
        index_of(tmp_path, SHOP)
    assert not list(tmp_path.iterdir())


def damaged(data: bytes, **changed: NDArray[Any]) -> bytes:
    about = {"format": "requery-catalogue-1", "products": str(len(SHOP))}
    return save({**load(data), **changed}, about)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "no safetensors"),
        (lambda _: b"", "no safetensors"),
        (lambda data: save(load(data)), "no catalogue index"),
        (lambda data: data.replace(b'"products":"7"', b'"products":"x"'), "how many"),
        (lambda data: data.replace(b'"products":"7"', b'"products":"8"'), "manifest says 7"),
        (lambda data: damaged(data, more=np.zeros(1, np.uint8)), "other arrays"),
        (lambda data: damaged(data, terms=load(data)["terms"].view(np.int64)), "another kind"),
        (lambda data: damaged(data, terms=load(data)["terms"][1:]), "another kind"),
        (lambda data: damaged(data, terms=load(data)["terms"][::-1].copy()), "not in order"),
        (lambda data: damaged(data, postings=load(data)["postings"][:-1]), "cut short"),
        (lambda data: damaged(data, postings=load(data)["postings"] | 0x80), "cut short"),
        (lambda data: damaged(data, postings=load(data)["postings"] * 0), "do not exist"),
        (lambda data: damaged(data, postings=load(data)["postings"] + 9), "do not exist"),
        (lambda data: damaged(data, more=np.zeros(2**20, np.uint8)), "too large"),
    ],
)  # fmt: skip
def test_a_damaged_file_is_refused(
    shop: TermIndex, tmp_path: Path, damage: Callable[[bytes], bytes], message: str
) -> None:
    path = tmp_path / catalogue.INDEX_FILE
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InvalidVersion, match=message):
        TermIndex.load(path, shop.products)
    path.unlink()
    with pytest.raises(InvalidVersion, match="No such file"):
        TermIndex.load(path)


async def test_a_service_says_what_was_dropped_and_how_old_the_catalogue_is(
    serve: Serve, shop: TermIndex
) -> None:
    about = {"index_file": "shop.index", "products": shop.products, "made_at": "2026-11-28T00:00Z"}
    digest = {"sha256": "0" * 64, "bytes": 1}
    manifest = make_manifest(
        "shop-1",
        schema_version=3,
        catalogue=about,
        files={"adapter.safetensors": digest, "shop.index": digest},
    )
    said = [("oat drink", 0.9), ("organic oat milk", 0.8), ("oat milk vanilla", 0.7), ("milk", 0.6)]
    service = await serve(
        more_versions=(ModelVersion(manifest, catalogue=shop),),
        more_engines=Engines(shop_1=ScriptedEngine({"oat milk": said})),
    )
    shown = (await service.client.post("/versions/shop-1/load?wait=true")).json()
    assert shown["catalogue"] == {"products": 7, "made_at": "2026-11-28T00:00:00+00:00"}
    answer = await service.rewrite("oat milk", model_version="shop-1", explain=True)
    assert [one["text"] for one in answer["rewrites"]] == ["milk"]
    assert {one["text"]: one["reason"] for one in answer["rejected"]} == {
        "oat drink": "no_results",
        "organic oat milk": "no_gain",
        "oat milk vanilla": "no_gain",
    }
    for verdict, count in (("no_results", 1), ("no_gain", 2), ("accepted", 1)):
        name = "requery_candidates_total"
        assert await service.metric(name, version="shop-1", verdict=verdict) == count
    age = await service.metric("requery_catalogue_age_seconds", version="shop-1")
    assert age == pytest.approx(time.time() - NOW.timestamp(), abs=600)
