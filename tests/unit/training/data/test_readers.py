from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from training.data.dataset import data_digests, data_folder, read_source
from training.data.readers import best_buy, home_depot
from training.errors import DataError

HOME_DEPOT = (
    '"id","product_uid","product_title","search_term","relevance"\n'
    '2,100001,"Simpson Strong-Tie 12-Gauge Angle","angle bracket",3\n'
    '3,100001,"Simpson Strong-Tie 12-Gauge Angle","l brackett",2.5\n'
    '9,000007,"Caf\xe9 ""Table"", 3/4 in.","007",1.67\n'
)
BEST_BUY = (
    "user,sku,category,query,click_time,query_time\n"
    "u1,11,c,Gears of War 3,2011-09-14 12:46:28,2011-09-14 12:45:07.064\n"
    "u2,11,c,Gears of War 3,2011-09-19 23:27:59.956,2011-09-19 23:27:47.408\n"
    "u3,22,c,halo,2011-09-15 00:00:00.5,2011-09-14 23:59:59\n"
    "u4,22,c,  ,2011-09-15 00:00:00.5,2011-09-14 23:59:59\n"
)
NAMES = "11\tGears of War 3\n22\tHalo: Reach\n33\tForza\n"


class TestHomeDepot:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "train.csv").write_bytes(HOME_DEPOT.encode("latin-1"))
        (tmp_path / "google_spell_pairs.tsv").write_text(
            'query\tcorrected\nl brackett\tl bracket\nnot asked "here\tnot asked here\n'
        )
        return tmp_path

    def test_its_tables(self, folder: Path) -> None:
        tables = home_depot.read(folder)
        assert tables.catalogue.rows() == [
            ("100001", "Simpson Strong-Tie 12-Gauge Angle"),
            ("000007", 'Café "Table", 3/4 in.'),
        ]
        assert tables.queries.rows() == [
            ("angle bracket", "angle bracket", 1),
            ("l brackett", "l bracket", 1),
            ("007", "007", 1),
        ]
        assert tables.judgements.rows() == [
            ("angle bracket", "100001", 3.0),
            ("l brackett", "100001", 2.5),
            ("007", "000007", 1.67),
        ]
        assert ("l brackett", "l bracket", "spelling") in tables.rewrites.rows()
        assert tables.interactions.is_empty()

    def test_numbers_alone_stay_text(self, tmp_path: Path) -> None:
        text = "product_uid,product_title,search_term,relevance\n01,0815,007,3\n"
        (tmp_path / "train.csv").write_text(text)
        tables = home_depot.read(tmp_path)
        assert tables.judgements.rows() == [("007", "01", 3.0)]

    def test_the_dictionary_of_spellings_may_be_absent(self, folder: Path) -> None:
        (folder / "google_spell_pairs.tsv").unlink()
        tables = home_depot.read(folder)
        assert tables.rewrites.is_empty()
        assert tables.queries["canonical"].to_list() == ["angle bracket", "l brackett", "007"]

    def test_a_missing_file_says_how_to_get_it(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match=r"train\.csv not found; get train\.csv from Kaggle"):
            home_depot.read(tmp_path)

    @pytest.mark.parametrize(
        "content", ["", "id,title\n1,x\n", HOME_DEPOT.replace(",3\n", ",good\n")]
    )
    def test_another_file_is_refused(self, folder: Path, content: str) -> None:
        (folder / "train.csv").write_bytes(content.encode("latin-1"))
        with pytest.raises(DataError, match=r"is not the competition's train\.csv"):
            home_depot.read(folder)

    def test_an_empty_title_is_named(self, folder: Path) -> None:
        (folder / "train.csv").write_text(
            "product_uid,product_title,search_term,relevance\n1,,nail,3\n"
        )
        with pytest.raises(DataError, match="'title' has empty values"):
            home_depot.read(folder)

    @pytest.mark.parametrize("content", ["", "a\tb\nx\ty\n"])
    def test_another_dictionary_is_refused(self, folder: Path, content: str) -> None:
        (folder / "google_spell_pairs.tsv").write_text(content)
        with pytest.raises(DataError, match="google_spell_pairs"):
            home_depot.read(folder)


class TestBestBuy:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        (tmp_path / "clicks_part1.csv").write_text(BEST_BUY)
        (tmp_path / "sku_name.tsv").write_text(NAMES)
        return tmp_path

    def test_clicks_are_counted_and_the_latest_is_kept(self, folder: Path) -> None:
        tables = best_buy.read(folder)
        assert tables.interactions.rows() == [
            ("Gears of War 3", "11", "click", 2, datetime(2011, 9, 19, 23, 27, 59, 956000, UTC)),
            ("halo", "22", "click", 1, datetime(2011, 9, 15, 0, 0, 0, 500000, UTC)),
        ]
        assert tables.queries.rows() == [
            ("Gears of War 3", "Gears of War 3", 2),
            ("halo", "halo", 1),
        ]
        assert len(tables.catalogue) == 3
        assert tables.judgements.is_empty()

    def test_parts_are_read_together(self, folder: Path) -> None:
        (folder / "clicks_part2.csv").write_text(BEST_BUY)
        assert best_buy.read(folder).interactions["count"].to_list() == [4, 2]

    def test_the_original_file_works_too(self, folder: Path) -> None:
        (folder / "clicks_part1.csv").rename(folder / "train.csv")
        assert best_buy.read(folder).interactions["count"].sum() == 3

    @pytest.mark.parametrize("name", ["clicks_part1.csv", "sku_name.tsv"])
    def test_a_missing_file_says_how_to_get_it(self, folder: Path, name: str) -> None:
        (folder / name).unlink()
        expected = "sku_name.tsv" if name == "sku_name.tsv" else "train.csv"
        with pytest.raises(DataError, match=f"{expected} not found; get the small set"):
            best_buy.read(folder)

    @pytest.mark.parametrize("content", ["", "user,sku\n1,2\n"])
    def test_another_file_is_refused(self, folder: Path, content: str) -> None:
        (folder / "clicks_part1.csv").write_text(content)
        with pytest.raises(DataError, match="not the hackathon's click file"):
            best_buy.read(folder)

    def test_a_time_that_is_none_is_shown(self, folder: Path) -> None:
        (folder / "clicks_part1.csv").write_text(BEST_BUY.replace("2011-09-15 00", "15.9.2011 00"))
        with pytest.raises(DataError, match=r"'15\.9\.2011 00:00:00\.5' is no click_time"):
            best_buy.read(folder)

    @pytest.mark.parametrize("content", [b"11 Gears\n", b"11\tPok\xe9mon\n"])
    def test_names_in_another_format_are_refused(self, folder: Path, content: bytes) -> None:
        (folder / "sku_name.tsv").write_bytes(content)
        with pytest.raises(DataError, match="sku_name"):
            best_buy.read(folder)


class TestDataFolder:
    def test_what_is_named_wins(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("REQUERY_DATA", str(tmp_path / "other"))
        assert data_folder(tmp_path) == tmp_path

    def test_the_environment_names_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REQUERY_DATA", str(tmp_path))
        assert data_folder() == tmp_path

    def test_the_usual_places(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(DataError, match="no data folder at data or"):
            data_folder()
        (tmp_path / "data").mkdir()
        assert data_folder() == Path("data")

    def test_none_there(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="pass --data or set REQUERY_DATA"):
            data_folder(tmp_path / "none")

    def test_sources_are_found_by_name_and_their_files_are_recorded(self, tmp_path: Path) -> None:
        (tmp_path / "best_buy").mkdir()
        (tmp_path / "best_buy" / "train.csv").write_text(BEST_BUY)
        (tmp_path / "best_buy" / "sku_name.tsv").write_text(NAMES)
        tables = read_source("best_buy", tmp_path)
        digests = data_digests("best_buy", tmp_path)
        assert list(digests) == ["best_buy/sku_name.tsv", "best_buy/train.csv"]
        tables.save(tmp_path / "ours")
        assert read_source("tables", tmp_path / "ours").queries.equals(tables.queries)
        assert "queries.parquet" in data_digests("tables", tmp_path / "ours")
        with pytest.raises(DataError, match="home_depot"):
            read_source("home_depot", tmp_path)
