"""The spelling corrector, on a handful of words."""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.english import frequencies
from model_store.errors import InvalidVersion
from model_store.manifest import SpellingSpec
from model_store.store import PACKAGED
from service.config.settings import Settings
from service.engine.spelling import (
    MAX_CHARS,
    Context,
    Corrector,
    weighted_edits,
    write_pairs,
    write_words,
)

COUNTS = {"ceiling": 50, "fan": 40, "lawn": 30, "mower": 30, "ge": 20, "fad": 2, "in": 90}

PACKAGED_WORDS = Corrector.of(
    SpellingSpec(words_file="words.txt"), PACKAGED / Settings().default_version
)


@pytest.fixture(scope="module")
def corrector() -> Corrector:
    return Corrector(COUNTS, pairs={("lawn", "mower"): 9, ("ceiling", "fan"): 9})


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("cieling fan", "ceiling fan"),  # neighbours swapped: one edit
        ("celling fan", "ceiling fan"),
        ("lawnmowre", "lawnmower"),
        ("lawn mowre", "lawn mower"),
        ("lawnmower", "lawn mower"),
        ("ceiling fan", None),
        ("ge fan", None),
        ("zzzzzzzz", None),
        ("", None),
        ("  ceiling   fan ", None),
        # Nothing is known of other writing.
        ("天花板 吊扇", None),
    ],
)
def test_by_hand(corrector: Corrector, query: str, expected: str | None) -> None:
    assert corrector(query) == expected
    assert expected is None or corrector.may_correct(query)


@pytest.mark.parametrize(
    "query",
    [
        "milk", "couch", "sneakers", "oat milk", "almond flour", "kids bike helmet", "roomba",
        "boys raincoat", "wireless doorbell no subscription", "nerf gun",
        "peanut butter no sugar", "harry potter lego", "return policy",
    ],
)  # fmt: skip
def test_a_word_that_the_catalogue_lacks_is_not_therefore_wrong(
    corrector: Corrector, query: str
) -> None:
    assert corrector(query) is None
    assert PACKAGED_WORDS(query) is None


def test_the_commonest_words_stay_as_they_are() -> None:
    words = sorted(frequencies(), key=lambda w: -frequencies()[w])[:10_000]
    assert [word for word in words if PACKAGED_WORDS(word) is not None] == []


@pytest.mark.parametrize("query", ["zapatos de mujer", "asdfgh qwertz", "zzzzqq xqxqx vvkjk"])
def test_nonsense_and_other_languages_are_told(corrector: Corrector, query: str) -> None:
    assert corrector.foreign(query)
    assert PACKAGED_WORDS.foreign(query)


@pytest.mark.parametrize("query", ["garden hoze", "roomba", "cieling fna", "milk", "dewalt drill"])
def test_slips_and_a_name_are_no_other_language(corrector: Corrector, query: str) -> None:
    assert not corrector.foreign(query)


def test_common_slips_cost_less() -> None:
    swapped, doubled, vowel, other = (
        weighted_edits(typed, "garden") for typed in ("gadren", "gardden", "gardan", "gaxden")
    )
    assert 0 < doubled < vowel < swapped < other == 1.0
    assert weighted_edits("xarden", "garden") > other


@pytest.mark.parametrize("sign", ['3/4"', "10.75", "wd40", "5000", "36-in.", "(white)", "&", "½"])
def test_sizes_codes_and_signs_stay(corrector: Corrector, sign: str) -> None:
    assert corrector(f"{sign} cieling {sign} mowre {sign}") == f"{sign} ceiling {sign} mower {sign}"
    assert corrector(sign) is None


def test_a_long_text_is_left_alone(corrector: Corrector) -> None:
    fits = "cieling " + "fan " * ((MAX_CHARS - 8) // 4)
    assert corrector(fits.strip()) is not None
    longer = fits + "fan"
    assert len(longer) > MAX_CHARS
    assert corrector(longer) is None
    assert not corrector.may_correct(longer)


def test_fewer_edits_reach_less() -> None:
    assert Corrector({"stake": 9}, max_edits=1)("stakkee") is None
    assert Corrector({"stake": 9}, max_edits=2)("stakkee") == "stake"


PAIRS = {("garden", "hose"): 9, ("hose", "reel"): 9, ("home", "office"): 9}
HOSES = {"garden": 30, "hose": 20, "home": 90, "hole": 5, "office": 20, "reel": 9, "horse": 5,
         "zinc": 3}  # fmt: skip


@pytest.mark.parametrize(
    ("query", "alone", "between"),
    [
        ("garden hoze", "garden hose", "garden hose"),
        ("hoze reel", "hose reel", "hose reel"),
        # A neighbour that is a slip itself is corrected first; a number is no neighbour.
        ("gardan hoze", "garden hose", "garden hose"),
        ("garden 50 hoze", "garden 50 hose", "garden 50 hose"),
        # A word is split into two that follow each other in the catalogue, never otherwise.
        ("homeoffice", None, "home office"),
        ("garden", None, None),
        # A known word stays, whatever is near.
        ("garden house", None, None),
    ],
)
def test_neighbours_choose_among_near_words(
    query: str, alone: str | None, between: str | None
) -> None:
    assert Corrector(HOSES)(query) == alone
    assert Corrector(HOSES, pairs=PAIRS)(query) == between


def test_how_well_a_word_fits_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.engine.spelling._SHOP", 1.0)
    context = Context({"a": 2, "b": 6, "c": 2}, {("a", "b"): 1, ("a", "c"): 3})
    assert context.fit("b", None, None) == pytest.approx(math.log(0.6))
    assert context.fit("b", "unknown", "unknown") == pytest.approx(math.log(0.6))
    # 0.9 * 1/4 + 0.1 * 6/10
    assert context.fit("b", "a", None) == pytest.approx(math.log(0.285))
    # Nothing is known of what follows "c"; then "a b" less "b" alone.
    assert context.fit("a", "c", "b") == pytest.approx(math.log(0.2 * 0.285 / 0.6))
    # Others follow "a": a tenth of what "a" is alone.
    assert context.fit("a", "a", None) == pytest.approx(math.log(0.02))


def test_pairs_travel_in_a_file_of_the_version(tmp_path: Path) -> None:
    write_words(HOSES, tmp_path / "words.txt")
    write_pairs(PAIRS, tmp_path / "pairs.txt")
    spec = SpellingSpec(words_file="words.txt", pairs_file="pairs.txt")
    assert Corrector.of(spec, tmp_path)("garden hoze") == "garden hose"
    (tmp_path / "pairs.txt").write_text("garden hose 9\nhose 9\n")
    with pytest.raises(InvalidVersion, match=r"pairs\.txt: line 2 is not 2 words"):
        Corrector.of(spec, tmp_path)
    for count in ("0", "-1", "9" * 5000):
        (tmp_path / "pairs.txt").write_text(f"garden hose {count}\n")
        with pytest.raises(InvalidVersion, match=r"pairs\.txt: line 1 is not 2 words"):
            Corrector.of(spec, tmp_path)
    (tmp_path / "pairs.txt").unlink()
    with pytest.raises(InvalidVersion, match=r"pairs\.txt"):
        Corrector.of(spec, tmp_path)


def test_threads_may_share_one(corrector: Corrector) -> None:
    queries = ["cieling fan", "lawnmower", "lawn mowre"] * 20
    expected = ["ceiling fan", "lawn mower", "lawn mower"] * 20
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(corrector, queries)) == expected


class TestFile:
    def corrector(self, folder: Path, text: str) -> Corrector:
        (folder / "words.txt").write_text(text, encoding="utf-8")
        return Corrector.of(SpellingSpec(words_file="words.txt", max_edits=1), folder)

    def test_what_is_written_can_be_read(self, tmp_path: Path) -> None:
        write_words({"fan": 3, "größe": 700}, tmp_path / "words.txt")
        corrector = Corrector.of(SpellingSpec(words_file="words.txt"), tmp_path)
        assert corrector("größ") == "größe"

    def test_its_settings_count(self, tmp_path: Path) -> None:
        assert self.corrector(tmp_path, "stake 3\n")("stakkee") is None

    @pytest.mark.parametrize("text", ["fan\n", "fan three\n", "fan 3 4\n", "fan 3\n\nfad 2\n"])
    def test_a_line_that_is_none_is_named(self, tmp_path: Path, text: str) -> None:
        with pytest.raises(InvalidVersion, match=r"words\.txt: line [12] "):
            self.corrector(tmp_path, text)

    def test_too_many_words_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidVersion, match="leave out the rare ones"):
            self.corrector(tmp_path, "word 1\n" * 200_000)

    def test_a_file_that_cannot_be_read(self, tmp_path: Path) -> None:
        with pytest.raises(InvalidVersion, match=r"words\.txt"):
            Corrector.of(SpellingSpec(words_file="words.txt"), tmp_path)
        (tmp_path / "words.txt").write_bytes(b"\xff\xfe")
        with pytest.raises(InvalidVersion, match=r"words\.txt"):
            Corrector.of(SpellingSpec(words_file="words.txt"), tmp_path)


@given(
    st.one_of(
        st.text(max_size=60),
        st.lists(st.text("aeiost rndl123/.-\"'", max_size=9), max_size=4).map(" ".join),
    )
)
def test_whatever_is_typed(text: str) -> None:
    found = PACKAGED_WORDS(text)
    if found is None:
        return
    assert found == " ".join(found.split()) != " ".join(text.split())
    # What is no word of letters is still there, in its order.
    assert [w for w in found.split() if not w.isalpha()] == [
        w for w in text.split() if not w.isalpha()
    ]
    assert PACKAGED_WORDS.may_correct(text)
