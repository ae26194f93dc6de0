"""Every rule of pair mining, on sources whose recall can be counted by hand."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.unit.training.worlds import make_world, shop_tables
from training.data import pairs
from training.data.dataset import split
from training.data.pairs import (
    PairMiner,
    QueryPairs,
    Scored,
    World,
    is_echo,
    is_trivial,
    phrases,
    summarise,
)
from training.data.search import fuse, recall


def texts(found: list[Scored], source: str | None = None) -> set[str]:
    return {s.text for s in found if source in (None, s.source)}


@pytest.mark.parametrize(
    ("one", "other", "echo"),
    [
        ("steel stake", "stake steel", True),
        ("steel stake", "steel stakes", True),
        ("t-post", "t post", True),
        ("stake", "the stake", True),
        ("stel stake", "steel stake", False),
        ("3/8 pvc", "3/4 pvc", False),
        ("stake", "steel stake", False),
        ("lawnmower", "lawn mower", False),
    ],
)
def test_an_echo_differs_trivially(one: str, other: str, echo: bool) -> None:
    assert is_echo(one, other) is echo
    assert is_echo(other, one) is echo


@pytest.mark.parametrize(
    ("one", "other", "trivial"),
    [
        ("lawnmower", "lawn mower", True),
        ("wallpaper", "wall paper", True),
        ("steel stakes", "Steel-stake", True),
        ("steele stake", "steel stake", False),
        ("stel stake", "steel stake", False),
        ("stake", "steel stake", False),
    ],
)
def test_a_trivial_rewrite_moves_spaces_at_most(one: str, other: str, trivial: bool) -> None:
    assert is_trivial(one, other) is trivial
    assert is_trivial(other, one) is trivial


class TestScore:
    @pytest.fixture
    def world(self) -> World:
        titles = {"a": "red hammer", "b": "steel mallet", "c": "blue bucket", "d": "oak mallet"}
        return make_world(titles, {"hammer": {"a": 3, "b": 2.33, "c": 1}})

    def test_own_and_gain_by_hand(self, world: World) -> None:
        # R = {a, b}; "hammer" finds {a}: 1/2. "mallet" finds {b, d}: own 1/2, and fused 2/2.
        assert world.score("hammer", "mallet", "x") == Scored("mallet", "x", 0.5, 0.5)
        assert world.score("hammer", "bucket", "x") == Scored("bucket", "x", 0.0, 0.0)
        assert world.score("hammer", "steel hammer", "x") == Scored("steel hammer", "x", 1.0, 0.5)

    def test_the_plain_result_is_remembered_and_right(self, world: World) -> None:
        assert world.plain("hammer") == world.plain("hammer") == ["a"]


def crowded() -> World:
    """ "alpha" finds R at ranks 61-70 behind 60 others; "beta" finds six of R behind 60 others.

    Fused, each ranking's first 47 or so fill the budget of 100 beside the six that both find; the
    four of R that only "alpha" finds are pushed out.
    """
    titles = {f"a{i:02}": f"alpha filler {i:02} x" for i in range(60)}
    titles |= {f"b{i:02}": f"beta filler {i:02} x" for i in range(60)}
    titles |= {f"r{i}": f"alpha {'beta' if i < 6 else 'gamma'} r{i} x" for i in range(10)}
    everything = {f"r{i}": 3.0 for i in range(10)}
    return make_world(
        titles, {"alpha": everything, "beta": {"r0": 3}, "alfa": everything}, {"alfa": "alpha"}
    )


def test_a_gain_may_be_a_loss_and_is_then_not_written() -> None:
    world = crowded()
    scored = world.score("alpha", "beta", "co-relevant")
    wanted = world.relevant["alpha"]
    assert scored.own == 0.6
    assert recall(world.plain("alpha"), wanted) == 1.0
    fused = fuse([world.index.search("alpha"), world.index.search("beta")])
    assert {p for p in fused if p in wanted} == {f"r{i}" for i in range(6)}
    assert scored.gain == pytest.approx(-0.4)
    mined = PairMiner(world, ["alpha", "beta"], 0).mine("alpha")
    # It still finds more than half of what the query needs: a positive to judge, not to write.
    assert "beta" not in texts(mined.write)
    assert "beta" in texts(mined.accept)


class TestSpelling:
    def test_a_correction_comes_first(self) -> None:
        world = make_world(
            {"a": "steel stake", "b": "metal stake"},
            {"steele stake": {"a": 3, "b": 3}, "metal stakes": {"b": 3}},
            {"steele stake": "steel stake"},
        )
        mined = PairMiner(world, list(world.canonical), 0).mine("steele stake")
        assert mined.write[0].text == "steel stake"
        assert mined.write[0].source == "spelling"

    def test_little_but_its_correction_is_written_for_a_misspelt_query(self) -> None:
        titles = {f"p{i}": f"steel stake {w}" for i, w in enumerate("abcdef")}
        good = dict.fromkeys(titles, 3.0)
        others = {f"steel stake {w}": good for w in "bcdef"}
        plain = make_world(titles, {"steele stake": good, **others})
        spelt = make_world(
            titles, {"steele stake": good, **others}, {"steele stake": "steel stake"}
        )
        allowed = ["steele stake", *others]
        assert len(PairMiner(plain, allowed, 0).mine("steele stake").write) == 4
        found = PairMiner(spelt, allowed, 0).mine("steele stake").write
        assert len(found) == 2
        assert found[0].text == "steel stake"

    def test_what_others_mistyped_is_learnt_in_correct_spelling(self) -> None:
        world = make_world(
            {"a": "steel stake"}, {"stake": {"a": 3}, "stell stake": {"a": 3}},
            {"stell stake": "steel stake"},
        )  # fmt: skip
        mined = PairMiner(world, ["stake", "stell stake"], 0).mine("stake")
        assert texts(mined.write + mined.accept, "co-relevant") == {"steel stake"}

    def test_there_are_as_many_negatives_as_asked_for(self) -> None:
        titles = {"a": "steel stake", **{f"b{i}": f"stake {w}" for i, w in enumerate("klmnopqr")}}
        grades = {"steel stake": {"a": 3.0}}
        grades |= {f"stake {w}": {f"b{i}": 3.0} for i, w in enumerate("klmnopqr")}
        world = make_world(titles, grades)
        miner = PairMiner(world, list(grades), 0)
        for most in (0, 4, 8):
            found = miner.mine("steel stake", max_judge=most).reject
            assert len(found) <= most
            assert len({s.text for s in found}) == len(found)

    def test_a_correction_may_be_an_echo(self) -> None:
        # To the search engine "lawnmower" and "lawn mower" are different words.
        world = make_world(
            {"a": "lawn mower"}, {"lawnmower": {"a": 3}}, {"lawnmower": "Lawn Mower"}
        )
        mined = PairMiner(world, ["lawnmower"], 0).mine("lawnmower")
        assert mined.write == [Scored("lawn mower", "spelling", 1.0, 1.0)]

    def test_a_correction_that_costs_recall_is_dropped(self) -> None:
        titles = {f"a{i:02}": f"alpha filler {i:02} x" for i in range(60)}
        titles |= {f"b{i:02}": f"beta filler {i:02} x" for i in range(60)}
        titles |= {f"r{i}": f"alpha gamma r{i} x" for i in range(10)}
        grades = {"alpha": {f"r{i}": 3.0 for i in range(10)}}
        world = make_world(titles, grades, {"alpha": "beta"})
        assert world.score("alpha", "beta", "spelling").gain < -pairs.MAX_LOSS_OF_CORRECTION
        assert "beta" not in texts(PairMiner(world, ["alpha"], 0).mine("alpha").write)


class TestCoRelevant:
    def test_what_is_written_accepted_and_dropped(self) -> None:
        # All of R hold "alpha"; of the ten, 6 hold "six", 5 "five", 4 "four". Each of these
        # queries shares a product with "alpha", whose own recall is 1.
        titles = {
            f"r{i}": " ".join(
                ["alpha", *(w for w, n in (("six", 6), ("five", 5), ("four", 4)) if i < n), f"x{i}"]
            )
            for i in range(10)
        }
        grades: dict[str, dict[str, float]] = {"alpha": {f"r{i}": 3.0 for i in range(10)}}
        grades |= {word: {"r0": 3.0} for word in ("six", "five", "four", "alphas")}
        # "six" keeps 60 % of what the query finds: written. "five" 50 %: judged. "four" 40 %: no.
        world = make_world(titles, grades)
        mined = PairMiner(world, list(grades), 0).mine("alpha")
        assert texts(mined.write, "co-relevant") == {"six"}
        assert texts(mined.accept, "co-relevant") == {"five"}
        assert "four" not in texts(mined.write + mined.accept + mined.reject)
        # An echo of the query is nothing to learn, however well it finds.
        assert "alphas" not in texts(mined.write + mined.accept + mined.reject)

    def test_a_query_that_shares_no_product_is_no_candidate(self) -> None:
        world = make_world(
            {"a": "red hammer", "b": "red mallet"}, {"hammer": {"a": 3}, "red": {"b": 3}}
        )
        mined = PairMiner(world, ["hammer", "red"], 0).mine("hammer")
        assert "red" not in texts(mined.write + mined.accept)

    def test_what_finds_nothing_is_not_written(self) -> None:
        world = make_world({"a": "oak"}, {"unheard": {"a": 3}, "of this": {"a": 3}})
        mined = PairMiner(world, ["unheard", "of this"], 0).mine("unheard")
        assert mined.write == []

    def test_trivial_variants_are_written_once(self) -> None:
        world = make_world(
            {"a": "red hammer tool"},
            {"hammer": {"a": 3}, "red tool": {"a": 3}, "tools red": {"a": 3}},
        )
        mined = PairMiner(world, list(world.canonical), 0).mine("hammer")
        assert len(texts(mined.write) & {"red tool", "tools red"}) == 1


class TestTitles:
    TITLES = {  # noqa: RUF012 - never changed
        "p": "kitchen mixer faucet",
        "q": "kitchen mixer faucet chrome",
        "r": "kitchen mixer faucet brass",
        "s": "garden tap",
        "z": "paint",
    }
    # People's queries, so that runs of words which end in "faucet" or "mixer" are things.
    ASKED = {  # noqa: RUF012
        text: {"z": 3.0}
        for text in (
            "kitchen faucet", "old faucet", "new faucet", "old mixer", "new mixer", "any mixer",
        )
    }  # fmt: skip

    def mine(
        self, query: str, grades: dict[str, float], titles: dict[str, str] | None = None
    ) -> QueryPairs:
        world = make_world(titles or self.TITLES, self.ASKED | {query: grades})
        return PairMiner(world, list(world.canonical), 0).mine(query)

    def test_a_phrase_must_fit_three_products_and_end_as_queries_end(self) -> None:
        written = texts(self.mine("tap", {"q": 3, "s": 3}).write, "title")
        # "faucet chrome" is on one product; nobody's query ends in "kitchen".
        assert written
        assert written <= {"kitchen mixer faucet", "mixer faucet", "kitchen mixer"}

    def test_two_at_most_are_written(self) -> None:
        assert len(texts(self.mine("tap", {"q": 3, "s": 3}).write, "title")) == 2

    def test_what_does_not_name_the_need_must_be_rare(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Each of the words is in three titles.
        monkeypatch.setattr(pairs, "RARE", 2)
        assert self.mine("tap", {"q": 3, "s": 3}).write == []
        written = texts(self.mine("big faucet", {"q": 3, "s": 3}).write, "title")
        assert "mixer faucet" in written, "half of it was asked for"
        assert not written & {"kitchen mixer", "kitchen mixer faucet"}

    def test_what_does_not_name_the_need_must_bring_a_gain(self) -> None:
        assert "kitchen mixer" not in texts(self.mine("faucet", {"q": 3}).write)
        titles = {k: v for k, v in self.TITLES.items() if k != "s"}
        assert "kitchen mixer" in texts(self.mine("tap", {"q": 3}, titles).write)

    def test_numbers_that_nobody_asked_for_are_not_learnt(self) -> None:
        titles = {p: f"2 handle faucet {p}" for p in "pqr"} | {"z": "paint"}
        assert texts(self.mine("old tap", {"q": 3}, titles).write, "title") == set()
        asked = self.mine("2 handle tap", {"q": 3}, titles)
        assert "2 handle faucet" in texts(asked.write, "title")

    def test_brands_that_nobody_asked_for_are_not_learnt(self) -> None:
        titles = {f"p{n}": f"Moen {'faucet' if n % 2 else 'drain'} {n}" for n in range(20)}
        titles["z"] = "paint"
        self_named = {"p1": 3.0}
        assert "moen faucet" not in texts(self.mine("faucet old", self_named, titles).write)
        assert "moen faucet" in texts(self.mine("moen old", self_named, titles).write)

    def test_only_engaging_titles_are_used(self) -> None:
        assert texts(self.mine("tap", {"q": 2.5, "s": 3}).write, "title") == set()

    def test_phrases_are_runs_of_two_to_four_words(self) -> None:
        title = 'Simpson (2-Pack) "Strong" Tie with Gauge, #10 Angle in.'
        found = set(phrases(title))
        assert {"simpson strong", "tie with gauge", "strong tie with gauge"} <= found
        assert not {p for p in found if p.split()[0] == "with" or p.split()[-1] in ("with", "in.")}
        assert not {p for p in found if "pack" in p or '"' in p}
        assert not {p for p in found if p.startswith("#") or p.endswith("#10")}
        assert all(2 <= len(p.split()) <= 4 for p in found)
        assert list(phrases("3/4 12 5 in.")) == []
        assert list(phrases("")) == []


class TestEdits:
    def test_words_are_joined_as_the_catalogue_has_them(self) -> None:
        titles = {"a": "doorbell brass", "b": "doorbell steel"}
        world = make_world(titles, {"door bell": {"a": 3}})
        mined = PairMiner(world, ["door bell"], 0).mine("door bell")
        assert mined.write == [Scored("doorbell", "edit", 1.0, 1.0)]

    def test_words_are_split_as_the_catalogue_has_them(self) -> None:
        titles = {f"p{n}": f"lawn mower {n}" for n in range(5)}
        world = make_world(titles, {"lawnmower": {"p0": 3}})
        mined = PairMiner(world, ["lawnmower"], 0).mine("lawnmower")
        assert texts(mined.write, "edit") == {"lawn mower"}

    def test_an_edit_that_brings_no_gain_is_not_written(self) -> None:
        titles = {"a": "doorbell", "b": "doorbell door bell"}
        world = make_world(titles, {"door bell": {"b": 3}})
        assert PairMiner(world, ["door bell"], 0).mine("door bell").write == []


class TestNegatives:
    def test_look_alikes_share_words_but_neither_product_nor_results(self) -> None:
        world = make_world(
            {"a": "garden hose", "b": "wood stake", "c": "hose reel"},
            {"cheap hose": {"a": 3}, "cheap stake": {"b": 3}, "cheap reel": {"a": 3, "c": 3}},
        )
        mined = PairMiner(world, list(world.canonical), 0).mine("cheap hose")
        assert texts(mined.reject, "look-alike") == {"cheap stake"}

    def test_a_look_alike_that_finds_what_the_query_needs_is_no_negative(self) -> None:
        world = make_world(
            {"a": "garden hose", "b": "garden stake"},
            {"garden hose": {"a": 3}, "garden stake": {"b": 3}},
        )
        # "garden stake" finds the hose too: the search engine takes any word.
        mined = PairMiner(world, list(world.canonical), 0).mine("garden hose")
        assert mined.reject == []

    def test_phrases_of_products_judged_bad(self) -> None:
        world = make_world(
            {"a": "garden hose", "b": "paint brush", "c": "paint roller"},
            {"hose": {"a": 3, "b": 1.67, "c": 2.0}},
        )
        mined = PairMiner(world, ["hose"], 0).mine("hose")
        assert texts(mined.reject, "bad-title") == {"paint brush"}, "2.0 is not bad"

    def test_a_query_that_finds_nothing_has_no_negatives(self) -> None:
        world = make_world(
            {"a": "garden hose", "b": "paint brush"},
            {"schlauch": {"a": 3, "b": 1}, "schlauch rot": {"b": 3}},
        )
        assert PairMiner(world, list(world.canonical), 0).mine("schlauch").reject == []

    def test_numbers_are_bounded(self) -> None:
        tables = shop_tables()
        world = World(tables)
        miner = PairMiner(world, list(world.canonical), 0)
        for query in world.with_relevant(world.canonical):
            mined = miner.mine(query, max_write=2, max_judge=1)
            assert len(mined.write) <= 2
            assert len(mined.accept) <= 2
            assert len(mined.reject) <= 1


class TestSplitGuarantee:
    """Queries outside ``allowed`` are never a source or a target of another query's pair."""

    def test_in_a_small_world(self) -> None:
        world = make_world(
            {"a": "garden hose", "b": "wood stake"},
            {"cheap hose": {"a": 3}, "cheap stake": {"b": 3}, "rubber pipe garden": {"a": 3}},
        )
        secret = ["cheap stake", "rubber pipe garden"]
        open_ = PairMiner(world, [*secret, "cheap hose"], 0).mine("cheap hose")
        seen = texts(open_.write + open_.accept + open_.reject)
        assert set(secret) <= seen, "they would be used if they were allowed"
        closed = PairMiner(world, ["cheap hose"], 0).mine("cheap hose")
        assert not seen & texts(closed.write + closed.accept + closed.reject)

    def test_in_a_whole_shop(self) -> None:
        world = World(shop_tables())
        parts = split(world)
        protected = {*parts.held_out, *parts.development}
        assert protected
        miner = PairMiner(world, parts.train, 0)
        for query in world.with_relevant(parts.train):
            mined = miner.mine(query)
            for scored in mined.write + mined.accept + mined.reject:
                # What is in a title or in the dictionary of spellings is no held-out query.
                if scored.source in ("co-relevant", "look-alike"):
                    assert scored.text not in protected


def test_summary() -> None:
    mined = {
        "a": QueryPairs("a", [Scored("x", "s", 1, 0.5), Scored("y", "s", 1, 0)], [], []),
        "b": QueryPairs("b", [], [Scored("z", "s", 1, 1)], [Scored("w", "s", 0, 0)]),
    }
    assert summarise(mined) == {
        "queries": 2, "write": 2, "accept": 1, "reject": 1, "queries_with_gain": 1,
    }  # fmt: skip


_DIGEST = """
import hashlib
from dataclasses import asdict
from tests.unit.training.worlds import shop_tables
from training.data.pairs import PairMiner, World
world = World(shop_tables())
miner = PairMiner(world, list(world.canonical), 7)
found = [asdict(miner.mine(q)) for q in world.with_relevant(world.canonical)]
print(hashlib.sha256(repr(found).encode()).hexdigest())
"""


def test_mining_again_in_another_process_gives_the_same() -> None:
    """A resumed run mines again: Python's hash seed must not matter."""
    digests = {
        subprocess.run(
            [sys.executable, "-c", _DIGEST],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("0", "1")
    }
    assert len(digests) == 1
