from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from examples.search_backend.__main__ import found, main
from examples.search_backend.catalogue import CATALOGUE, Index, Product, read
from examples.search_backend.fusion import REWRITE_WEIGHT, RRF_K, fuse, weight
from service.client import Answer, Rewrite
from service.security.api_keys import entry, new_key
from tests.support.engine import Script, ScriptedEngine
from tests.support.http_server import listening
from training.data import search


@pytest.fixture(scope="module")
def index() -> Index:
    return Index(read())


def titles(index: Index, ranking: list[str]) -> list[str]:
    return [index.products[name].title for name in ranking]


class TestCatalogue:
    def test_it_has_some_two_hundred_products_each_once(self) -> None:
        products = read()
        assert 150 <= len(products) <= 250
        assert len({one.product_id for one in products}) == len(products)
        assert len({one.title for one in products}) == len(products)
        assert all(one.title.strip() and one.category for one in products)

    def test_a_file_without_a_column_is_refused(self, tmp_path: Path) -> None:
        file = tmp_path / "products.csv"
        file.write_text("product_id,title\np1,Rug\n")
        with pytest.raises(ValueError, match="has no column category"):
            read(file)


class TestIndex:
    def test_the_best_match_comes_first(self, index: Index) -> None:
        assert titles(index, index.search("sisal outdoor rug"))[0] == (
            "Natural sisal look outdoor rug"
        )

    def test_any_word_may_match(self, index: Index) -> None:
        assert index.search("sisal xyzzy") == index.search("sisal")
        assert index.search("xyzzy") == []

    @pytest.mark.parametrize("text", ["", " ", "!!!", '"', "("])
    def test_nothing_to_search_for_finds_nothing(self, index: Index, text: str) -> None:
        assert index.search(text) == []

    @pytest.mark.parametrize(
        "text", ["-rug", '"sisal rug', "title:sisal AND (rug", "sisal^9 rug~", "NOT sisal OR", "*"]
    )
    def test_operators_are_words(self, index: Index, text: str) -> None:
        words = "".join(c if c.isalnum() else " " for c in text)
        assert index.search(text) == index.search(words.lower())

    def test_no_more_than_asked_for(self, index: Index) -> None:
        assert len(index.search("ft in", depth=3)) == 3


class TestFusion:
    def test_it_is_the_fusion_that_was_evaluated(self) -> None:
        rankings = [["a", "b", "c"], ["c", "d"], ["e", "a"]]
        weights = [1.0, REWRITE_WEIGHT, REWRITE_WEIGHT]
        assert (RRF_K, REWRITE_WEIGHT) == (search.RRF_K, search.REWRITE_WEIGHT)
        assert fuse(rankings, weights) == search.fuse(rankings, weights=weights)

    def test_scores_are_weights_over_ranks(self) -> None:
        # a: 1/61 = 0.0164; b: 1/62 = 0.0161; c: 0.6/61 = 0.0098.
        assert fuse([["a", "b"], ["c"]], [1.0, 0.6]) == ["a", "b", "c"]
        # b: 1/62 + 0.6/61 = 0.0260 overtakes a.
        assert fuse([["a", "b"], ["b"]], [1.0, 0.6]) == ["b", "a"]

    def test_a_rewrite_that_is_doubted_counts_less(self) -> None:
        assert weight(Rewrite("a", 1.0)) == REWRITE_WEIGHT
        assert weight(Rewrite("a", 0.5)) == REWRITE_WEIGHT / 2


class TestSearching:
    def test_without_rewrites_it_is_the_plain_search(self, index: Index) -> None:
        for query in ("garden hoze", "rug", "", "xyzzy"):
            assert found(index, query, Answer(query)) == index.search(query)

    def test_a_rewrite_brings_what_the_query_misses(self, index: Index) -> None:
        answer = Answer("cieling fan", (Rewrite("ceiling fan", 0.99),))
        plain, fused = index.search("cieling"), found(index, "cieling", answer)
        assert plain == []
        assert titles(index, fused)[0].endswith("ceiling fan with light")

    def test_what_the_query_finds_is_still_there(self, index: Index) -> None:
        answer = Answer("outdoor rug", (Rewrite("patio carpet", 0.9), Rewrite("sisal", 0.8)))
        assert set(index.search("outdoor rug")) < set(found(index, "outdoor rug", answer))

    def test_two_products(self) -> None:
        index = Index([Product("1", "steel post", "x"), Product("2", "iron stake", "x")])
        answer = Answer("stake", (Rewrite("post", 1.0),))
        assert found(index, "stake", answer) == ["2", "1"]


class TestCommand:
    async def test_it_searches_with_the_rewrites_of_a_service(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        script: dict[str, Script] = {"steele stake": (("steel stake", 0.98), ("rug", 0.01))}
        async with listening(ScriptedEngine(script)) as service:
            url = f"http://127.0.0.1:{service.port}"
            given = ["steele stake", "--url", url, "--deadline-ms", "60000"]
            assert await asyncio.to_thread(main, given) == 0
        out = capsys.readouterr().out
        plain, with_rewrites = out.split("Rewrites: steel stake (0.98)")
        assert "steele stake: 12 products" in plain
        assert " + " not in plain
        assert " 14 + Steel 10 in tent stakes\n" in with_rewrites
        assert "rug" not in out.lower()

    async def test_without_a_good_rewrite_it_says_so(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        async with listening(ScriptedEngine(default=())) as service:
            given = ["rug", "--url", f"http://127.0.0.1:{service.port}", "--deadline-ms", "60000"]
            assert await asyncio.to_thread(main, given) == 0
        assert "No rewrites (none: no good ones)" in capsys.readouterr().out

    def test_without_a_service_it_searches_all_the_same(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
        assert main(["sisal rug", "--url", f"http://127.0.0.1:{port}"]) == 0
        out = capsys.readouterr().out
        assert "Natural sisal look outdoor rug" in out
        assert "No rewrites (unavailable: ConnectError)" in out

    async def test_a_key_that_is_wrong_is_told(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        keys = tmp_path / "keys.yaml"
        keys.write_text(entry("shop", new_key(), ["rewrite"]))
        monkeypatch.setenv("REQUERY_KEY", new_key())
        async with listening(api_keys_file=keys) as service:
            given = ["rug", "--url", f"http://127.0.0.1:{service.port}", "--deadline-ms", "60000"]
            assert await asyncio.to_thread(main, given) == 1
        assert "401 unauthorized" in capsys.readouterr().err

    def test_another_catalogue(self, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
        file = tmp_path / "mine.csv"
        file.write_text("product_id,title,category\n7,Blue widget,x\n")
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        assert main(["widget", "--url", url, "--catalogue", str(file)]) == 0
        assert "Blue widget" in capsys.readouterr().out
        assert file != CATALOGUE
