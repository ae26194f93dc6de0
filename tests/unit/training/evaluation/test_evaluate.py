from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from model_store.manifest import FilterSpec
from model_store.store import PACKAGED, FolderSource, Store
from service.filtering.candidates import Scored
from tests.unit.training.worlds import make_tables, make_world, shop_tables
from training.data.dataset import Split, split
from training.data.pairs import World, is_echo
from training.errors import DataError, RunError
from training.evaluation.evaluate import (
    Drawn,
    Outcome,
    compare,
    corrections_of,
    draw_version,
    filtered,
    judge_rewrites,
    judge_row,
    measure,
    rows_of,
    slices,
    tag_pairs,
)
from training.evaluation.measure import (
    Bench,
    Measured,
    differences,
    fold_exam,
    load_drawn,
    other_exam,
)
from training.evaluation.report import as_differences, as_table
from training.judge.first_results import FirstResults

TITLES = {
    "a": "steel stake",
    "b": "steel post",
    "c": "garden pole",
    "d": "garden hose",
    "e": "paint",
}
# Relevant (from 2.33): a, b, c, e. Engaged (from 2.67): a, c, e.
GRADES = {"steel": {"a": 3.0, "b": 2.33, "c": 2.67, "d": 1.0, "e": 3.0}}


@pytest.fixture
def world() -> World:
    return make_world(TITLES, GRADES)


class TestJudgeRewrites:
    def test_by_hand(self, world: World) -> None:
        # "steel" finds a and b: 2 of 4. "garden" finds c and d: 3 of 4 together. Of the engaged
        # ones {a, c, e} the rewrite finds c: productivity 1/3, and the query alone does not:
        # increment 1/3.
        found = judge_rewrites(world, "steel", ["garden"])
        assert found == Outcome(0.5, 0.75, 1 / 3, 1 / 3, 1, True)
        assert found.gain == 0.25

    def test_what_the_query_finds_too_is_no_increment(self, world: World) -> None:
        # "stake garden" finds a, c and d; a is found by the query too.
        found = judge_rewrites(world, "steel", ["stake garden"])
        assert found.productivity == pytest.approx(2 / 3)
        assert found.increment == pytest.approx(1 / 3)

    def test_rewrites_count_together(self, world: World) -> None:
        found = judge_rewrites(world, "steel", ["garden", "paint"])
        assert found == Outcome(0.5, 1.0, 2 / 3, 2 / 3, 2, True)

    def test_no_rewrite_changes_nothing(self, world: World) -> None:
        assert judge_rewrites(world, "steel", []) == Outcome(0.5, 0.5, 0.0, 0.0, 0, False)

    def test_an_echo_covers_nothing(self, world: World) -> None:
        found = judge_rewrites(world, "steel", ["steels"])
        assert (found.rewrites, found.covered, found.gain) == (1, False, 0.0)

    def test_a_query_without_engaged_products(self) -> None:
        world = make_world(TITLES, {"steel": {"c": 2.5}})
        found = judge_rewrites(world, "steel", ["garden"])
        assert found == Outcome(0.0, 1.0, 0.0, 0.0, 1, True)

    def test_the_budget_of_the_plain_query_is_kept(self) -> None:
        titles = {f"a{i:03}": f"alpha {i}" for i in range(100)}
        titles |= {f"b{i:03}": f"beta {i}" for i in range(100)}
        world = make_world(titles, {"alpha": {"a099": 3.0, "b000": 3.0}})
        # The fusion takes 50 from each: the first of "beta" comes in, the last of "alpha" goes.
        found = judge_rewrites(world, "alpha", ["beta"])
        assert (found.plain, found.recall) == (0.5, 0.5)
        assert found.increment == 0.5

    def test_a_rewrite_of_less_weight_takes_fewer_places(self) -> None:
        titles = {f"a{i:03}": f"alpha {i}" for i in range(100)}
        titles |= {f"b{i:03}": f"beta {i}" for i in range(100)}
        world = make_world(titles, {"alpha": {"a070": 3.0, "b000": 3.0}})
        assert judge_rewrites(world, "alpha", ["beta"]).recall == 0.5
        assert judge_rewrites(world, "alpha", ["beta"], 0.6).recall == 1.0


def test_slices() -> None:
    queries = ["nail", "stel nail", "a b c d e", "a b c"]
    world = make_world({"x": "nail"}, {q: {"x": 3.0} for q in queries}, {"stel nail": "steel nail"})
    assert slices(world, queries) == {
        "all": queries,
        "misspelled": ["stel nail"],
        "short": ["nail", "stel nail"],
        "long": ["a b c d e"],
    }


def test_measure_by_hand() -> None:
    world = make_world(TITLES, GRADES | {"garden": {"c": 3.0}})
    rewrites = {"steel": ["garden", "paint"], "garden": []}
    row = measure(world, ["steel", "garden"], rewrites.__getitem__)["all"]
    assert row["queries"] == 2
    assert row["plain_recall"][0] == 0.75  # 2/4 and 1/1
    assert row["recall"][0] == 1.0
    assert row["gain"][0] == 0.25
    assert row["helped"][0] == 0.5
    assert row["harmed"][0] == 0.0
    assert row["covered"][0] == 0.5
    assert row["rewrites"][0] == 1.0
    assert row["increment"][0] == pytest.approx(1 / 3, abs=1e-4)
    # "garden" finds c of {a, c, e} and "paint" e; the query "garden" has c and no rewrite: 2 of 4.
    assert row["hit_rate"][0] == 0.5
    assert row["gain"][1] <= row["gain"][0] <= row["gain"][2]


def test_harm_begins_beyond_five_hundredths(monkeypatch: pytest.MonkeyPatch) -> None:
    from training.evaluation import evaluate

    losses = iter([0.05, 0.06])

    def lose(*_: object) -> Outcome:
        return Outcome(0.5, 0.5 - next(losses), 0.0, 0.0, 1, True)

    monkeypatch.setattr(evaluate, "judge_rewrites", lose)
    world = make_world(TITLES, GRADES)
    row = measure(world, ["steel", "garden"], lambda _: ["x"])["all"]
    assert row["harmed"][0] == 0.5


def test_the_corrections_of_the_search_engine() -> None:
    world = make_world({"x": "nail"}, {"nial": {"x": 3}, "nail": {"x": 3}}, {"nial": "nail"})
    rewriter = corrections_of(world)
    assert rewriter("nial") == ["nail"]
    assert rewriter("nail") == []


def test_filtered_answers_as_the_service_would() -> None:
    candidates = {
        "3/4 dewalt drill": [
            Scored("3/4 dewalt drills", 0.99),  # an echo
            Scored("3/8 dewalt drill bit", 0.98),  # another size
            Scored("3/4 drill bit", 0.97),  # the brand is gone
            Scored("3/4 dewalt drill bit", 0.6),
            Scored("3/4 dewalt power drill", 0.9),
            Scored("3/4 dewalt saw", 0.4),  # below the threshold
            Scored("3/4 dewalt", None),  # never came to its tag
        ]
    }
    rewriter = filtered(candidates, FilterSpec(), ["dewalt"], fold_case=True)
    assert rewriter("3/4 dewalt drill") == ["3/4 dewalt power drill", "3/4 dewalt drill bit"]
    assert rewriter("never drawn") == []


class TestWhole:
    @pytest.fixture
    def shop(self) -> World:
        return World(shop_tables())

    def test_tag_pairs_are_of_the_queries_asked_about(self, shop: World) -> None:
        parts = split(shop)
        queries = shop.with_relevant(parts.held_out)
        pairs, labels = tag_pairs(shop, parts, queries, seed=0)
        assert len(pairs) == len(labels)
        assert {True, False} <= set(labels)
        assert {query for query, _ in pairs} <= set(queries)
        spelling = set(shop.corrections.items())
        assert not [p for p in pairs if p not in spelling and is_echo(*p)]

    def test_the_record_and_its_table(self, shop: World) -> None:
        parts = split(shop)
        queries = shop.with_relevant(parts.held_out)
        _, labels = tag_pairs(shop, parts, queries, seed=0)
        candidates = {q: [Scored(f"{q} for the house", 0.9)] for q in queries}
        drawn = Drawn(candidates, labels, [0.9 if label else 0.1 for label in labels])
        rows = rows_of(shop, queries, drawn, FilterSpec(), [], fold_case=True)
        result = Measured("x-1", "0" * 64, drawn, rows).record(shop)
        assert result["tagging"]["auc"] == [1.0, 1.0, 1.0]
        assert list(result["rows"]) == [
            "plain query", "spelling corrections (oracle)", "unfiltered", "version",
            "version, less weight", "up to 4 rewrites", "up to 4, less weight",
        ]  # fmt: skip
        plain = result["rows"]["plain query"]["all"]
        assert plain["queries"] == len(queries)
        assert plain["gain"] == [0.0, 0.0, 0.0]
        table = as_table({"fold": "held-out fold", "depth": 100, **result})
        lines = table.splitlines()
        assert lines[0].startswith("Version x-1, held-out fold")
        assert f"Tagging of {len(labels)} mined pairs: AUC 1.000 [1.000, 1.000]" in table
        header = next(line for line in lines if line.startswith("| queries"))
        body = [line for line in lines if line.startswith("| all (")]
        assert len(body) == 7
        assert all(line.count("|") == header.count("|") for line in body)

    def test_data_without_negatives_is_an_error_before_the_engine_starts(self) -> None:
        world = make_world({"a": "red hammer"}, {"hammer": {"a": 3}, "red tool": {"a": 3}})
        parts = Split(("hammer", "red tool"), (), ("hammer",), frozenset())
        with pytest.raises(DataError, match="no pairs of both kinds"):
            draw_version(world, parts, ["hammer"], version=None)  # type: ignore[arg-type]


def test_table_cells_by_hand() -> None:
    figures = {
        "queries": 7,
        "recall": [0.7294, 0.71, 0.75],
        "gain": [0.01, -0.002, 0.0226],
        "harmed": [0.0123, 0.0, 0.02],
        "covered": [0.805, 0.7, 0.9],
        "increment": [0.1234, 0.1, 0.2],
        "rewrites": [2.345, 2.0, 3.0],
        "relevance": [0.6666, 0.6, 0.7],
    }
    table = as_table(
        {
            "version": "x-1",
            "fold": "development fold",
            "depth": 100,
            "tagging": {"pairs": 9, "auc": [0.9, 0.8, 1.0], "accuracy": [0.75, 0.7, 0.8]},
            "rewrite_weight": 0.6,
            "rows": {"version": {"all": figures}},
        }
    )
    assert "accuracy 75.0 % [70.0, 80.0]." in table
    assert table.splitlines()[-1] == (
        "| all (7) | version | 0.729 [0.710, 0.750] | 0.010 [-0.002, 0.023] "
        "| 1.2 % [0.0, 2.0] | 80.5 % | 0.123 | 0.667 | 2.35 |"
    )


class TestSideBySide:
    def measured(self, world: World, name: str, rewrites: dict[str, list[str]]) -> Measured:
        candidates = {q: [Scored(t, 0.9) for t in texts] for q, texts in rewrites.items()}
        right = name == "good"
        drawn = Drawn(candidates, [True, False], [0.9, 0.1] if right else [0.9, 0.9])
        rows = rows_of(world, list(rewrites), drawn, FilterSpec(), [], fold_case=True)
        return Measured(name, "0" * 64, drawn, rows)

    def test_differences_by_hand(self, world: World) -> None:
        good = self.measured(world, "good", {"steel": ["garden", "paint"]})
        bad = self.measured(world, "bad", {"steel": []})
        found = differences(world, good, bad)
        # Recall 4/4 against 2/4; both more of the engaged ones are found by "good" alone.
        row = found["differences"]["version"]["all"]
        assert row["recall"] == [0.5, 0.5, 0.5]
        assert row["increment"][0] == pytest.approx(2 / 3, abs=1e-3)
        assert row["helped"][0] == row["covered"][0] == 1.0
        assert found["tag_difference"]["accuracy"][0] == 0.5
        text = as_differences(
            {"version": "good", "against": "bad", "fold": "x", "depth": 100, **found}
        )
        assert text.splitlines()[-3].endswith("| - |")
        assert "| all | version | 0.500 [0.500, 0.500] | 0.0 % [0.0, 0.0] |" in text

    def test_relevance_is_the_judges_word_on_first_results(self, world: World) -> None:
        asked: list[tuple[str, str]] = []

        def score(pairs: Sequence[tuple[str, str]]) -> list[float]:
            asked.extend(pairs)
            return [0.8 if "garden" in title else 0.2 for _, title in pairs]

        first = FirstResults(world, score, first=10)
        rewrites = {"steel": ["garden", "paint"], "none": []}
        world.relevant["none"] = frozenset("a")
        row = judge_row(world, list(rewrites), rewrites.__getitem__, 1.0, first)
        # "garden" finds two of 0.8, "paint" one of 0.2.
        assert row["steel"].relevance == pytest.approx(0.5)
        assert row["none"].relevance is None
        assert len(asked) == len(set(asked)) == 3
        better = {**row, "steel": replace(row["steel"], relevance=0.75)}
        assert compare(world, better, row)["all"]["relevance"][0] == pytest.approx(0.25)

    def test_what_was_drawn_is_kept_and_not_drawn_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from training.evaluation import measure as bench_module

        shop = World(shop_tables())
        parts = split(shop)
        queries = shop.with_relevant(parts.development)
        times = []

        def draw(*_: object) -> Drawn:
            times.append(1)
            return Drawn({q: [Scored("a", 0.5)] for q in queries}, [True, False], [0.9, 0.1])

        monkeypatch.setattr(bench_module, "draw_version", draw)
        version = Store([FolderSource(PACKAGED)]).get("sft-1")
        for _ in range(2):
            bench = Bench(shop, fold_exam(shop, "development"), tmp_path / "kept")
            measured = bench.measure(version)
            assert measured.drawn.candidates[queries[0]] == [Scored("a", 0.5)]
        assert len(times) == 1
        (kept,) = (tmp_path / "kept").iterdir()
        assert kept.name.startswith("sft-1-")
        kept.write_text("{")
        with pytest.raises(RunError, match="remove it to draw again"):
            load_drawn(kept)

    def test_all_of_another_source_is_unseen(self) -> None:
        clicks = {"steel": {"a": 3}, "garden": {"c": 1}, "none": {"unknown": 1}}
        world = make_world(TITLES, {}, clicks=clicks)
        exam = other_exam(world, "other", limit=10)
        assert set(exam.queries) == set(exam.parts.held_out) == {"steel", "garden"}
        assert len(other_exam(world, "other", limit=1).queries) == 1
        with pytest.raises(DataError, match="no query has a relevant product"):
            other_exam(make_world(TITLES, {}), "empty", limit=10)

    def test_a_smaller_budget(self) -> None:
        world = World(make_tables(TITLES, GRADES), depth=1)
        # One product a search: "steel" finds one of four, and fused with "garden" it still does.
        assert judge_rewrites(world, "steel", ["garden"]).recall == 0.25
