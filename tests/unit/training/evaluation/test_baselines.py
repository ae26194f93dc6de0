"""Baselines on catalogues small enough to work out by hand."""

from __future__ import annotations

from service.engine.spelling import Corrector
from tests.unit.training.worlds import make_world
from training.data.dataset import Split
from training.evaluation.baselines import RelevanceFeedback, baselines, corrections_by, vocabulary
from training.evaluation.evaluate import measure


class TestVocabulary:
    def test_counts_words_of_letters(self) -> None:
        counts = vocabulary(["GE Fan, 3 in. wd40", "fan"], ["a fan"])
        assert counts == {"ge": 1, "fan": 3, "in": 1, "a": 1}


def test_a_corrector_is_a_rewriter() -> None:
    rewriter = corrections_by(Corrector({"fan": 3}))
    assert list(rewriter("fna")) == ["fan"]
    assert list(rewriter("fan")) == []


# Each result of "ladder" has three words and the term once, so all weigh alike.
LADDERS = {
    "a": "ladder oak step",
    "b": "ladder oak pine",
    "c": "ladder oak step",
    "d": "drill steel bit",
}


class TestFeedback:
    def feedback(self, **settings: object) -> RelevanceFeedback:
        world = make_world(LADDERS, {"ladder": {"a": 3.0}})
        return RelevanceFeedback(world, **settings)  # type: ignore[arg-type]

    def test_words_by_their_share_of_the_first_results(self) -> None:
        # P(oak) = 3/9, P(step) = 2/9, P(pine) = 1/9.
        assert self.feedback(terms=2)("ladder") == ["ladder oak step"]
        assert self.feedback(terms=9)("ladder") == ["ladder oak step pine"]

    def test_each_word_by_itself(self) -> None:
        assert self.feedback(terms=2, single=True)("ladder") == ["ladder oak", "ladder step"]

    def test_products_that_match_better_count_for_more(self) -> None:
        titles = {"a": "pump oil red", "b": "pump well blue", "c": "pump well blue"}
        world = make_world(titles, {"oil pump": {"a": 3.0}})
        sharp = RelevanceFeedback(world, terms=1, mu=0.01)
        # "oil" is in the first product alone: with a sharp model its words win,
        assert sharp("oil pump") == ["oil pump red"]
        # with a flat one the words of the two others, which are more.
        assert RelevanceFeedback(world, terms=1, mu=1e6)("oil pump") == ["oil pump blue"]

    def test_a_term_that_no_title_has_changes_nothing(self) -> None:
        assert self.feedback(terms=1)("ladder zzz") == ["ladder zzz oak"]

    def test_the_commonest_spelling_is_written(self) -> None:
        titles = {"a": "saw blades", "b": "saw blade", "c": "saw blades"}
        world = make_world(titles, {"saw": {"a": 3.0}})
        assert RelevanceFeedback(world, terms=1)("saw") == ["saw blades"]

    def test_numbers_short_words_and_stop_words_do_not_expand(self) -> None:
        world = make_world({"a": "saw for 10in 5 ft"}, {"saw": {"a": 3.0}})
        assert RelevanceFeedback(world)("saw") == []

    def test_nothing_found(self) -> None:
        assert self.feedback()("zzz") == []
        assert self.feedback()("") == []


def test_baselines_are_rewriters_to_measure() -> None:
    titles = {f"p{i}": f"oak ladder model {i}" for i in range(6)} | {"x": "steel drill"}
    world = make_world(titles, {"laddre": {"p1": 3.0}, "drill": {"x": 3.0}})
    parts = Split(train=("drill",), development=("laddre",), held_out=(), protected=frozenset())
    found = baselines(world, parts)
    assert found["SymSpell"]("laddre") == ["ladder"]
    row = measure(world, ["laddre"], found["SymSpell"])
    # The query finds nothing, its correction everything.
    assert row["all"]["gain"][0] == 1.0
    assert list(found["RM3"]("drill")) == ["drill steel"]
