"""The data source of all departments: what one pass holds."""

from __future__ import annotations

import pytest

from training.data.curated_pairs import CuratedQuery, CuratedSplit, Rewrite
from training.data.folds import compact
from training.data.general import General, Mix
from training.data.pairs import QueryPairs, is_echo
from training.data.shops import Slip

NONE = Mix(0, 0, 0, 0, 0, 0, 0)


def query(text: str, right: str = "", wrong: str = "", kind: str = "synonym") -> CuratedQuery:
    return CuratedQuery(
        text,
        "all",
        tuple(Rewrite(one, kind) for one in right.split("|") if one),
        tuple(Rewrite(one, "type") for one in wrong.split("|") if one),
    )


CURATED = (
    query("garden hose", "water hose|hosepipe|yard hose|lawn hose|hose pipe for garden", "vacuum"),
    query("couch", "sofa|settee", "touch|couch cover"),
    query("nonstick pan", "nonstick pans", "pan", kind="word_form"),
    query("tabel lamp", "table lamp", "table", kind="spelling"),
    query("sneakers", "athletic shoes", "boots"),
    query("xqzv", "", "boots"),
)
TITLES = ["garden hose 50 ft", "table lamp with shade", "couch cover", "red table lamp"] * 20


@pytest.fixture(scope="module")
def general() -> General:
    split = CuratedSplit(CURATED, (query("rug", "carpet", "mug"),), frozenset({compact("rug")}))
    return General(split, TITLES, [Slip("gardn", "garden", 8)], [], [("rug", "mat"), ("tv", "set")])


def texts(pairs: QueryPairs) -> set[str]:
    return {one.text for one in (*pairs.write, *pairs.accept, *pairs.reject)}


def test_every_curated_query_comes_once_and_right_is_never_wrong(general: General) -> None:
    made = {pairs.query: pairs for pairs in general.one_pass(1, NONE)}
    assert made.keys() == {one.query for one in CURATED}
    for one in CURATED:
        right = {rewrite.text for rewrite in one.right}
        rejected = {scored.text for scored in made[one.query].reject}
        assert not right & rejected
        assert one.query not in texts(made[one.query])


def test_the_best_are_written_and_forms_are_only_judged(general: General) -> None:
    made = {pairs.query: pairs for pairs in general.one_pass(1, NONE)}
    assert [s.text for s in made["garden hose"].write] == [
        "water hose", "hosepipe", "yard hose", "lawn hose",
    ]  # fmt: skip
    assert made["nonstick pan"].write == []
    assert [s.text for s in made["nonstick pan"].accept] == ["nonstick pans"]
    assert made["xqzv"].write == made["xqzv"].accept == []
    assert made["xqzv"].reject


def test_rewrites_are_lent_as_wrong_ones(general: General) -> None:
    made = {pairs.query: pairs for pairs in general.one_pass(1, NONE)}
    others = {r.text for q in CURATED for r in q.right if q.query != "couch"}
    assert others & {scored.text for scored in made["couch"].reject}


def test_corrections_bring_the_meant_query_first_and_wrong_ones(general: General) -> None:
    made = general.one_pass(2, Mix(60, 0, 0, 0, 0, 0, 0))
    known = {one.query for one in CURATED}
    corrections = [pairs for pairs in made if pairs.query not in known]
    assert len(corrections) >= 50
    meant = {t for q in CURATED for t in (q.corrected, *(r.text for r in q.right))}
    for pairs in corrections:
        assert pairs.write[0].text in meant
        assert not is_echo(pairs.query, pairs.write[0].text)
    assert sum(bool(pairs.reject) for pairs in corrections) > 0.9 * len(corrections)
    assert any("gardn" in pairs.query for pairs in corrections)


@pytest.mark.parametrize(
    ("mix", "writes"),
    [(Mix(0, 5, 0, 0, 0, 0, 0), True), (Mix(0, 0, 0, 5, 0, 0, 0), True),
     (Mix(0, 0, 5, 0, 0, 0, 0), False), (Mix(0, 0, 0, 0, 5, 0, 0), False),
     (Mix(0, 0, 0, 0, 0, 5, 0), False)],
)  # fmt: skip
def test_each_part_of_the_mix_has_wrong_ones(general: General, mix: Mix, writes: bool) -> None:
    known = {one.query for one in CURATED}
    made = [pairs for pairs in general.one_pass(3, mix) if pairs.query not in known]
    assert 0 < len(made) <= 5
    assert all(bool(pairs.write) == writes for pairs in made)
    assert any(pairs.reject for pairs in made)


def test_what_is_kept_out_is_no_query(general: General) -> None:
    made = general.one_pass(4, Mix(0, 0, 0, 0, 0, 0, 2))
    assert {pairs.query for pairs in made} == {one.query for one in CURATED} | {"tv"}


def test_passes_depend_on_the_seed_alone(general: General) -> None:
    mix = Mix(5, 5, 5, 5, 5, 5, 1)
    assert general.one_pass(5, mix) == general.one_pass(5, mix)
    assert general.one_pass(5, mix) != general.one_pass(6, mix)


def test_to_judge_holds_all_curated_pairs(general: General) -> None:
    (rug,) = general.to_judge(general.curated.development, 1)
    assert [s.text for s in rug.accept] == ["carpet"]
    assert [s.text for s in rug.reject] == ["mug"]
    assert rug.write == []
