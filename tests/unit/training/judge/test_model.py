"""The judge on a random BERT of a few thousand weights: what it writes, reads and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.unit.training.tiny_bert import write_tiny_bert
from training.errors import RunError
from training.judge.model import Calibration, Judge, collate, encode

PAIRS = [
    ("steel hammer", "oak hammer for the house"),
    ("oak ladder", "brass faucet"),
    ("drill", "nylon carpet for the house and the garden and the house"),
]


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    return load(tmp_path / "bert")


def load(folder: Path) -> Judge:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    write_tiny_bert(folder)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(str(folder), num_labels=1)
    return Judge(model, AutoTokenizer.from_pretrained(str(folder)), Calibration(2.0, 0.5))


class TestCalibration:
    def test_worked_by_hand(self) -> None:
        scores = Calibration(slope=2.0, shift=-1.0).apply(torch.tensor([0.5, 0.0]))
        # 2 x 0.5 - 1 = 0, and sigmoid(-1) = 1 / (1 + e).
        assert scores.tolist() == pytest.approx([0.5, 0.268941421])

    def test_keeps_the_order(self) -> None:
        raw = torch.linspace(-6, 6, 50)
        scores = Calibration(0.3, 2.0).apply(raw)
        assert bool((scores.diff() > 0).all())

    @pytest.mark.parametrize("slope", [0.0, -1.0, float("nan"), float("inf")])
    def test_refuses_a_slope_that_does_not_rise(self, slope: float) -> None:
        with pytest.raises(RunError, match="do not rise with relevance"):
            Calibration(slope=slope)


class TestEncode:
    def test_query_and_title_are_two_segments(self, judge: Judge) -> None:
        (row,) = encode(judge.tokenizer, [("Steel HAMMER", "oak hammer")], 48)
        words = judge.tokenizer.convert_ids_to_tokens(row["input_ids"])
        assert words == ["[CLS]", "steel", "hammer", "[SEP]", "oak", "hammer", "[SEP]"]
        assert row["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]

    def test_long_titles_and_queries_are_cut(self, judge: Judge) -> None:
        (row,) = encode(judge.tokenizer, [("drill " * 30, "oak " * 30)], 12)
        words = judge.tokenizer.convert_ids_to_tokens(row["input_ids"])
        assert words == ["[CLS]", *["drill"] * 6, "[SEP]", *["oak"] * 3, "[SEP]"]

    def test_a_batch_is_padded(self) -> None:
        rows = [
            {"input_ids": [5, 6], "token_type_ids": [0, 1], "attention_mask": [1, 1]},
            {"input_ids": [7], "token_type_ids": [1], "attention_mask": [1]},
        ]
        batch = collate(rows, pad_id=9)
        assert batch["input_ids"].tolist() == [[5, 6], [7, 9]]
        assert batch["token_type_ids"].tolist() == [[0, 1], [1, 0]]
        assert batch["attention_mask"].tolist() == [[1, 1], [1, 0]]


class TestScore:
    def test_one_score_for_each_pair_in_its_order(self, judge: Judge) -> None:
        together = judge.score(PAIRS)
        alone = [judge.score([pair])[0] for pair in PAIRS]
        assert all(0.0 < s < 1.0 for s in together)
        assert together == pytest.approx(alone, abs=0.01)
        assert judge.score(PAIRS[::-1]) == pytest.approx(together[::-1], abs=0.01)

    def test_pairs_differ(self, judge: Judge) -> None:
        assert len(set(judge.score(PAIRS))) == len(PAIRS)

    def test_more_pairs_than_a_batch(self, judge: Judge) -> None:
        many = judge.score(PAIRS * 50)
        assert len(many) == 150
        assert many[0::3] == pytest.approx([many[0]] * 50, abs=0.01)

    def test_case_and_spaces_do_not_matter(self, judge: Judge) -> None:
        assert judge.score([("STEEL  Hammer", "Oak")]) == judge.score([("steel hammer", "oak")])

    def test_nothing_to_score(self, judge: Judge) -> None:
        assert judge.score([]) == []

    def test_an_empty_query_or_title_has_a_score(self, judge: Judge) -> None:
        assert len(judge.score([("", "oak"), ("oak", ""), ("", "")])) == 3


class TestSaveAndLoad:
    def test_the_same_judge_comes_back(self, judge: Judge, tmp_path: Path) -> None:
        judge.save(tmp_path / "judge")
        again = Judge.load(tmp_path / "judge")
        assert again.score(PAIRS) == judge.score(PAIRS)
        assert again.calibration == Calibration(2.0, 0.5)
        assert again.max_length == judge.max_length

    def test_only_safe_files_are_written(self, judge: Judge, tmp_path: Path) -> None:
        judge.save(tmp_path / "judge")
        assert {p.suffix for p in (tmp_path / "judge").iterdir()} == {".json", ".safetensors"}

    def test_a_changed_file_is_refused(self, judge: Judge, tmp_path: Path) -> None:
        judge.save(tmp_path / "judge")
        weights = tmp_path / "judge" / "model.safetensors"
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(bytes(content))
        with pytest.raises(RunError, match=r"model\.safetensors.*SHA-256 differs"):
            Judge.load(tmp_path / "judge")

    def test_a_missing_file_is_refused(self, judge: Judge, tmp_path: Path) -> None:
        judge.save(tmp_path / "judge")
        (tmp_path / "judge" / "tokenizer.json").unlink()
        with pytest.raises(RunError, match=r"tokenizer\.json: is missing"):
            Judge.load(tmp_path / "judge")

    @pytest.mark.parametrize("content", [None, "{", "{}", "[]", '{"files": {}, "calibration": 1}'])
    def test_no_judge_there(self, tmp_path: Path, content: str | None) -> None:
        if content is not None:
            (tmp_path / "judge.json").write_text(content)
        with pytest.raises(RunError, match="holds no judge that can be read"):
            Judge.load(tmp_path)

    def test_a_judge_is_replaced_anything_else_is_not(self, judge: Judge, tmp_path: Path) -> None:
        judge.save(tmp_path / "judge")
        judge.calibration = Calibration(1.0, 0.0)
        judge.save(tmp_path / "judge")
        record = json.loads((tmp_path / "judge" / "judge.json").read_text())
        assert record["calibration"] == {"slope": 1.0, "shift": 0.0}
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("years of work")
        with pytest.raises(RunError, match="holds no judge"):
            judge.save(tmp_path / "mine")
        assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"
