from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model_store.prompt import PromptFormat
from tests.support.model_versions import PROMPT, byte_tokenizer
from tests.unit.training.worlds import make_world, rooms_world, shop_tables
from training.data.curated_pairs import CuratedQuery, CuratedSplit, Rewrite
from training.data.dataset import (
    Split,
    data_digests,
    domain_rows,
    general_rows,
    mine_all,
    misspell_some,
    same_need,
    sft_rows,
    split,
    tag_rows,
)
from training.data.folds import compact, fold_of, variants
from training.data.general import General
from training.data.packing import Row
from training.data.pairs import QueryPairs, Scored, World
from training.errors import DataError
from training.recipe import GrpoStage, Optimiser, Recipe, SftStage, load_recipe

SHIPPED = Path(__file__).parents[4] / "training" / "recipes" / "sft-1.yaml"


@pytest.fixture(scope="module")
def world() -> World:
    return World(shop_tables())


@pytest.fixture(scope="module")
def parts(world: World) -> Split:
    return split(world)


@pytest.fixture
def recipe() -> Recipe:
    loaded = load_recipe(SHIPPED)
    return loaded.model_copy(update={"data": loaded.data.model_copy(update={"noisy_pairs": 20})})


@pytest.fixture(scope="module")
def prompts() -> PromptFormat:
    return PromptFormat(byte_tokenizer(), PROMPT)


class TestSplit:
    def test_folds_decide(self, world: World, parts: Split) -> None:
        for part, fold in ((parts.held_out, 0), (parts.development, 1)):
            assert part
            assert {fold_of(world.canonical[q]) for q in part} == {fold}
        assert not {fold_of(world.canonical[q]) for q in parts.train} & {0, 1}
        assert not set(parts.train) & {*parts.held_out, *parts.development}

    def test_no_variant_of_a_protected_query_is_left(self, world: World, parts: Split) -> None:
        protected = {*parts.held_out, *parts.development}
        assert variants(parts.train, protected | {world.canonical[q] for q in protected}) == set()

    def test_a_misspelling_is_in_the_fold_of_its_correction(self) -> None:
        world = make_world(
            {"a": "x"}, {"steele stake": {"a": 3}, "steel stake": {"a": 3}},
            {"steele stake": "steel stake"},
        )  # fmt: skip
        assert {fold_of(c) for c in world.canonical.values()} == {fold_of("steel stake")}

    def test_unlisted_misspellings_of_held_out_queries_are_not_trained_on(self) -> None:
        tables = shop_tables()
        held = next(q for q in tables.queries["query"] if fold_of(q) == 0 and " " in q)
        typo = next(
            t for i in range(1, len(held)) if fold_of(t := held[:i] + held[i - 1 :]) not in (0, 1)
        )
        grades = {
            q: {p: g for (x, p, g) in tables.judgements.rows() if x == q}
            for q in tables.queries["query"]
        }
        world = make_world(dict(tables.catalogue.rows()), grades | {typo: {"p00": 3.0}})
        assert typo in world.with_relevant([typo])
        assert typo not in split(world).train

    @pytest.mark.parametrize(
        ("keep", "name"), [({1, 2}, "held-out"), ({0, 2}, "development"), ({0, 1}, "training")]
    )
    def test_an_empty_fold_is_an_error(self, keep: set[int], name: str) -> None:
        queries = [f"{n} thing {n}" for n in range(100)]
        grades = {q: {"a": 3.0} for q in queries if fold_of(q) in keep}
        with pytest.raises(DataError, match=f"the {name} fold has no query"):
            split(make_world({"a": "thing"}, grades))

    def test_a_fold_of_irrelevant_products_is_as_good_as_empty(self) -> None:
        grades = {f"{n} thing {n}": {"a": 1.0} for n in range(100)}
        with pytest.raises(DataError, match="relevant product"):
            split(make_world({"a": "thing"}, grades))


def tokens(rows: list[Row]) -> int:
    return sum(len(r.ids) for r in rows)


def queries_in(rows: list[Row], prompts: PromptFormat) -> set[str]:
    return {
        prompts.decode(r.ids[i + 1 : r.ids.index(prompts.rewrite_id, i)]).strip()
        for r in rows
        for i, token in enumerate(r.ids)
        if token == prompts.query_id
    }


class TestRows:
    @pytest.fixture
    def mined(self, world: World, parts: Split, recipe: Recipe) -> dict[str, QueryPairs]:
        return mine_all(world, parts, recipe)

    def sft(
        self,
        mined: dict[str, QueryPairs],
        world: World,
        parts: Split,
        recipe: Recipe,
        prompts: PromptFormat,
        *,
        count: int = 3000,
        seed: int = 1,
        sampled: dict[str, QueryPairs] | None = None,
        **options: Any,
    ) -> list[Row]:
        stage = SftStage(
            kind="sft", tokens=count, optimiser=Optimiser(learning_rate=1e-3), **options
        )
        return sft_rows(mined, sampled or {}, world, parts, recipe, prompts, stage=stage, seed=seed)

    def test_mining_covers_the_training_queries(
        self, mined: dict[str, QueryPairs], world: World, parts: Split
    ) -> None:
        assert list(mined) == world.with_relevant(parts.train)

    def test_the_budget_is_kept_and_the_seed_decides(
        self, mined: dict[str, QueryPairs], world: World, parts: Split, recipe: Recipe,
        prompts: PromptFormat,
    ) -> None:  # fmt: skip
        rows = self.sft(mined, world, parts, recipe, prompts)
        assert 3000 <= tokens(rows) <= 3000 + 256
        assert rows == self.sft(mined, world, parts, recipe, prompts)
        assert rows != self.sft(mined, world, parts, recipe, prompts, seed=2)

    def test_too_few_pairs_are_repeated(
        self, mined: dict[str, QueryPairs], world: World, parts: Split, recipe: Recipe,
        prompts: PromptFormat,
    ) -> None:  # fmt: skip
        rows = self.sft(mined, world, parts, recipe, prompts, count=100_000)
        assert tokens(rows) >= 100_000

    def test_both_tags_are_learnt(
        self, mined: dict[str, QueryPairs], world: World, parts: Split, recipe: Recipe,
        prompts: PromptFormat,
    ) -> None:  # fmt: skip
        tags = [t for r in self.sft(mined, world, parts, recipe, prompts) for t in r.tag]
        assert set(tags) == {0, 1}
        single = self.sft(mined, world, parts, recipe, prompts, tasks="write")
        assert {t for r in single for t in r.tag} == {1}

    def test_samples_come_with_as_many_mined_and_half_as_many_noisy_pairs(
        self, mined: dict[str, QueryPairs], world: World, parts: Split, recipe: Recipe,
        prompts: PromptFormat,
    ) -> None:  # fmt: skip
        sampled = {
            q: QueryPairs(q, [Scored("sampled text", "sample", 1.0, 0.0)]) for q in list(mined)[:8]
        }
        rows = self.sft(mined, world, parts, recipe, prompts, sampled=sampled, count=1_000)
        text = " ".join(prompts.decode(r.ids) for r in rows)
        assert text.count("sampled text") >= 8
        # At most 8 + 8 + 4 different queries.
        assert 8 <= len(queries_in(rows, prompts)) <= 20

    def test_a_stage_may_take_all_mined_pairs_beside_samples(
        self, mined: dict[str, QueryPairs], world: World, parts: Split, recipe: Recipe,
        prompts: PromptFormat,
    ) -> None:  # fmt: skip
        query = next(iter(mined))
        sampled = {query: QueryPairs(query, [Scored("sampled text", "sample", 1.0, 0.0)])}
        rows = self.sft(
            mined, world, parts, recipe, prompts, sampled=sampled, count=100_000,
            match_samples=False, noisy_pairs=0,
        )  # fmt: skip
        learnt = {q for q, p in mined.items() if p.write or p.accept or p.reject}
        assert queries_in(rows, prompts) == learnt

    def test_catalogue_pairs_are_judged_and_never_written(
        self, recipe: Recipe, prompts: PromptFormat
    ) -> None:
        world = rooms_world()
        parts = Split(tuple(world.canonical), (), (), frozenset())
        rows = self.sft(
            {}, world, parts, recipe, prompts, noisy_pairs=0, catalogue_pairs=5, count=500
        )
        assert {t for r in rows for t in r.tag} == {0, 1}
        assert all(not r.target for r in rows)

    def test_domain_text_is_of_titles_and_training_queries(
        self, world: World, parts: Split, prompts: PromptFormat
    ) -> None:
        rows = domain_rows(
            world, parts.train, prompts, tokens=100_000, row_tokens=256, seed=1
        )  # fmt: skip
        learnt = {
            prompts.decode([i for i, t in zip(r.ids, r.tree, strict=True) if t == number])
            for r in rows
            for number in set(r.tree)
        }
        assert learnt <= {*world.titles.values(), *parts.train}
        assert set(world.titles.values()) <= learnt
        assert learnt & set(parts.train)
        assert all(not r.tag for r in rows)
        small = domain_rows(world, parts.train, prompts, tokens=500, row_tokens=256, seed=1)
        assert 500 <= tokens(small) <= 500 + 256


class TestMisspellSome:
    def test_a_share_is_misspelt_and_the_world_knows_what_was_meant(self) -> None:
        shop = World(shop_tables())
        known = split(shop)
        queries = [q for q in known.train if q not in shop.corrections] * 4
        found = misspell_some(shop, known, queries, 0.5, seed=3)
        changed = [(a, b) for a, b in zip(queries, found, strict=True) if a != b]
        assert len(queries) / 4 < len(changed) < len(queries) * 3 / 4
        for query, form in changed:
            assert shop.meant(form) == query
            assert shop.relevant[form] == shop.relevant[query]
            assert compact(form) not in known.protected

    def test_none_is_none_and_a_seed_decides(self) -> None:
        shop = World(shop_tables())
        known = split(shop)
        assert misspell_some(shop, known, known.train, 0.0, seed=3) == list(known.train)
        again = [
            misspell_some(World(shop_tables()), known, known.train, 0.5, seed=3) for _ in range(2)
        ]
        assert again[0] == again[1]

    def test_a_query_that_people_misspelt_stays(self) -> None:
        shop = make_world(
            {"a": "steel stake"},
            {"steele stake": {"a": 3.0}, "steel stake": {"a": 3.0}},
            {"steele stake": "steel stake"},
        )
        known = Split(("steele stake",), (), (), frozenset())
        assert misspell_some(shop, known, ["steele stake"], 1.0, seed=3) == ["steele stake"]


class TestTagRows:
    def rows(self, prompts: PromptFormat, recipe: Recipe, catalogue: int) -> list[Row]:
        rooms = rooms_world()
        queries = tuple(sorted({" ".join(t.split()[:2]) for t in rooms.titles.values()}))
        stage = GrpoStage(
            kind="grpo", steps=4, learning_rate=1e-4, rewards={"gain": 1.0}, tag_rows=2,
            catalogue_pairs=catalogue,
        )  # fmt: skip
        known = Split(queries, (), (), frozenset())
        return tag_rows({}, rooms, known, recipe, prompts, stage=stage, seed=1)

    def test_the_catalogue_gives_pairs_to_judge_and_none_to_write(
        self, prompts: PromptFormat, recipe: Recipe
    ) -> None:
        rows = self.rows(prompts, recipe, catalogue=20)
        assert rows
        assert all(row.tag and not row.target for row in rows)

    def test_without_it_and_without_mined_pairs_there_is_nothing(
        self, prompts: PromptFormat, recipe: Recipe
    ) -> None:
        assert self.rows(prompts, recipe, catalogue=0) == []


class TestAllDepartments:
    def test_as_many_queries_are_mined_as_the_recipe_says(
        self, world: World, parts: Split, recipe: Recipe
    ) -> None:
        few = recipe.model_copy(update={"data": recipe.data.model_copy(update={"queries": 5})})
        assert len(mine_all(world, parts, few)) == 5

    def test_mined_pairs_keep_what_is_the_same_need(self) -> None:
        def scored(text: str, source: str) -> Scored:
            return Scored(text, source, 1.0, 0.1)

        mined = QueryPairs(
            "2 in pipe",
            write=[
                scored("2 inch pipe", "co-relevant"),
                scored("3 in pipe", "co-relevant"),
                scored("2 in pipe fitting", "title"),
            ],
            accept=[scored("pipe", "co-relevant"), scored("tube 2 in", "co-relevant")],
            reject=[scored("4 in pipe", "look-alike")],
        )
        kept = same_need(mined)
        assert [one.text for one in kept.write] == ["2 inch pipe"]
        assert [one.text for one in kept.accept] == ["2 in pipe fitting", "tube 2 in"]
        assert kept.reject == mined.reject

    def test_rows_mix_both_sources_by_their_share(
        self, world: World, parts: Split, recipe: Recipe, prompts: PromptFormat
    ) -> None:
        curated = tuple(
            CuratedQuery(
                f"couch no {n}", "home", (Rewrite(f"sofa no {n}", "synonym"),),
                (Rewrite(f"touch no {n}", "confusable"),),
            )
            for n in range(20)
        )  # fmt: skip
        mined = mine_all(world, parts, recipe)
        held = next(iter(mined))
        split_of = CuratedSplit(curated, (), frozenset({compact(held)}))
        general = General(split_of, ["table lamp with shade"] * 9, [])
        stage = SftStage(
            kind="sft", tokens=60_000, home_share=0.3, optimiser=Optimiser(learning_rate=1e-3)
        )
        rows = general_rows(general, mined, recipe, prompts, stage=stage, seed=1)
        assert 60_000 <= tokens(rows) <= 60_000 + 256
        assert rows == general_rows(general, mined, recipe, prompts, stage=stage, seed=1)
        queries = queries_in(rows, prompts)
        assert queries & {one.query for one in curated}
        assert queries & mined.keys()
        assert held not in queries

    def test_digests_name_every_file(self, tmp_path: Path) -> None:
        for name in ("shops/crowdflower/products.tsv", "spelling/pairs.tsv", "home_depot/a.csv"):
            path = tmp_path / name
            path.parent.mkdir(parents=True)
            path.write_text(name)
        with pytest.raises(FileNotFoundError):
            data_digests("general", tmp_path)
        assert list(data_digests("home_depot", tmp_path)) == ["home_depot/a.csv"]
        (tmp_path / "x.parquet").write_text("x")
        assert list(data_digests("tables", tmp_path)) == ["x.parquet"]
