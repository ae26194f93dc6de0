"""Synthetic misspellings and the wrong corrections to judge beside them."""

from __future__ import annotations

import pytest

from tests.unit.training.worlds import make_world
from training.data.folds import compact
from training.data.misspellings import Lookalikes, clean_texts, noisy_pairs, real_slips
from training.data.noise import Slips
from training.data.pairs import phrases
from training.data.search import stems

CATALOGUE = ["shower head", "shovel head", "show rack", "shutter dog", "garden hose"] * 5


def test_each_noisy_query_is_to_be_written_as_the_clean_text() -> None:
    made = list(noisy_pairs(["steel stake", "garden hose"], 50, seed=3))
    assert len(made) == 50
    assert made == list(noisy_pairs(["steel stake", "garden hose"], 50, seed=3))
    for pair in made:
        assert pair.write[0].text in ("steel stake", "garden hose")
        assert pair.query != pair.write[0].text
        assert pair.accept == pair.reject == []


@pytest.mark.parametrize("clean", [[], ["a"]])
def test_noise_that_cannot_be_made_ends(clean: list[str]) -> None:
    assert list(noisy_pairs(clean, 5, seed=0)) == []


def test_wrong_corrections_are_other_words_or_other_misspellings() -> None:
    known = Lookalikes(CATALOGUE)
    made = list(noisy_pairs(["shower head"], 80, seed=1, lookalikes=known))
    wrong = {s.text for pair in made for s in pair.reject}
    assert {"shovel head", "shutter head"} & wrong, "a catalogue word that looks like it"
    assert any(t.split()[0] not in known for t in wrong), "a misspelling"
    for pair in made:
        for scored in pair.reject:
            assert scored.text not in (pair.query, pair.write[0].text)
            assert stems(scored.text) != stems("shower head")


def test_slips_that_the_search_engine_does_not_see_are_left_out() -> None:
    slips = Slips([("heads", "head"), ("hed", "head")])
    made = {p.query for p in noisy_pairs(["shower head"], 60, seed=2, slips=slips)}
    assert "shower hed" in made
    assert "shower heads" not in made


def test_no_noisy_query_has_a_protected_form() -> None:
    free = {p.query for p in noisy_pairs(["steel stake"], 200, seed=5)}
    secret = min(free)
    kept = noisy_pairs(["steel stake"], 200, seed=5, protected=frozenset({compact(secret)}))
    assert secret not in {p.query for p in kept}


class TestLookalikes:
    def test_only_common_longer_words_are_known(self) -> None:
        known = Lookalikes([*CATALOGUE, "shower once", "3/4 dog dog dog dog dog"])
        assert "shower" in known
        for word in ("once", "3/4", "dog", "showr"):
            assert word not in known

    def test_the_nearest_come_first_and_never_the_word_itself(self) -> None:
        near = Lookalikes(CATALOGUE).near("shower")
        assert near
        assert near[0] in ("shovel", "show")
        assert "shower" not in near
        assert "garden" not in near

    def test_a_plural_is_no_other_word(self) -> None:
        assert Lookalikes(["shower", "showers"] * 5).near("shower") == []


class TestCleanTexts:
    def test_it_is_of_allowed_queries_and_titles_alone(self) -> None:
        world = make_world(
            {"a": "garden hose reel"}, {"steel stake": {"a": 3}, "secret words": {"a": 3}}
        )
        clean = clean_texts(world, ["steel stake"], 0, 10)
        assert "secret words" not in clean
        assert set(clean) <= {"steel stake", *phrases("garden hose reel")}

    def test_misspelt_queries_are_not_taken_for_clean(self) -> None:
        world = make_world({"a": "x"}, {"steele stake": {"a": 3}}, {"steele stake": "steel stake"})
        assert clean_texts(world, ["steele stake"], 0, 10) == []


def test_slips_are_learnt_from_allowed_queries_alone() -> None:
    corrections = {"hamer": "hammer", "ladr": "ladder"}
    assert len(real_slips(corrections, ["hamer"])) == 1
    assert len(real_slips(corrections, ["hamer", "ladr"])) == 2
    assert isinstance(real_slips({}, []), Slips)
