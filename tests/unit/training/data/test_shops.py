"""Other people's files: read if they are there, and a clear line if not."""

from __future__ import annotations

from pathlib import Path

import pytest

from training.data.shops import (
    SHOPS,
    Slip,
    english_words,
    read_brands,
    read_slips,
    read_synonyms,
    read_synsets,
    read_titles,
    title_words,
)
from training.errors import DataError


def write(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_titles_of_all_shops_are_read_once(tmp_path: Path) -> None:
    for shop in SHOPS:
        write(
            tmp_path / "shops" / shop / "products.tsv",
            "id\ttitle",
            "1\tApple&#xAE; iPod - Black",
            f"2\tOnly at {shop}...",
        )
    titles = read_titles(tmp_path)
    assert len(titles) == len(SHOPS) + 1
    assert "only at instacart" in titles


def test_slips_are_single_words_and_children_count_less(tmp_path: Path) -> None:
    write(
        tmp_path / "spelling" / "pairs.tsv",
        "wrong\tright\tsource",
        "Hoze\those\tcodespell",
        "hoos\those\tbirkbeck",
        "a lot\talot\twikipedia",
        "hose\tHose\tcodespell",
    )
    known, child = read_slips(tmp_path)
    assert (known.wrong, known.right) == ("hoze", "hose")
    assert child == Slip("hoos", "hose", 1)
    assert known.weight > child.weight


def test_synonyms_are_what_both_similarities_say(tmp_path: Path) -> None:
    write(
        tmp_path / "term_pairs" / "amazon_us.tsv",
        "query_term\ttitle_term\tmpnet\tminilm",
        "sofa\tcouch\t0.95\t0.92",
        "kona\tcoffee\t0.70\t0.95",
        "skate\tboard\t0.95\t",
        "Lamp\tlamp\t1.0\t1.0",
    )
    assert read_synonyms(tmp_path) == [("sofa", "couch")]


@pytest.mark.parametrize("read", [read_titles, read_slips, read_synonyms])
def test_a_missing_file_is_named(tmp_path: Path, read: object) -> None:
    assert callable(read)
    with pytest.raises(DataError, match=r"\.tsv not found"):
        read(tmp_path)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    write(tmp_path / "spelling" / "pairs.tsv", "wrong\tsource", "hoze\tcodespell")
    with pytest.raises(DataError, match="no column right"):
        read_slips(tmp_path)


def test_words_of_titles_are_counted_by_title() -> None:
    assert title_words(["red red hose", "red, 3m tape", "hose"], 2) == {"red": 2, "hose": 2}


def test_common_english_is_known() -> None:
    words = english_words()
    assert {"milk", "couch", "the"} <= words.keys()
    assert len(words) > 15_000


def test_brands_are_what_titles_begin_with(tmp_path: Path) -> None:
    rows = [*["1\tSony&#xAE; TV\tSony&#xAE;"] * 5, *["2\tBlue - CD\tColumbia (USA)"] * 9]
    rows += ["3\tAcme anvil\tAcme", *["4\tanvil\t"] * 9]
    for shop in ("matching", "retrotech"):
        write(tmp_path / "shops" / shop / "products.tsv", "id\ttitle\tbrand", *rows[:20])
    assert read_brands(tmp_path) == ["sony"]


def test_synsets_are_names_of_one_thing_that_is_sold(tmp_path: Path) -> None:
    write(
        tmp_path / "lexicon" / "wordnet_product_synsets.tsv",
        "domain\tlemmas\tgloss",
        "artifact\tsofa|couch|lounge\ta long seat",
        "artifact\ttank|army tank\ta vehicle",
        "artifact\ttank|vat\ta vessel",
        "artifact\ttank|reservoir\ta lake",
        "animal\tsofa dog|dog\tan animal",
    )
    titles = ["red couch", "two sofas", "dog tank", "army tank, vat", "reservoir sofa dog"] * 3
    assert read_synsets(tmp_path, titles) == [("sofa", "couch"), ("couch", "sofa")]
