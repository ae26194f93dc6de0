"""A whole training run on a tiny base, killed on the way and continued, as a person would do it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from model_store.store import FolderSource, Store
from tests.support.tiny_llama import tiny_recipe, write_base
from tests.unit.training.worlds import shop_tables

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]

# Ends the process, as the kernel would, right after the second checkpoint of the second stage.
KILLED = """
import os, signal, sys
from training.finetuning import stages

def on_save(self, args, state, control, **_):
    if self._stage == 1 and state.global_step == 4:
        os.kill(os.getpid(), signal.SIGKILL)

stages.Journal.on_save = on_save
sys.argv[0] = "requery"
from service.cli import app
app()
"""


@dataclass(frozen=True)
class Place:
    """Everything that the runs share."""

    folder: Path
    data: Path
    recipe: Path

    def command(self, run: Path) -> list[str]:
        return [
            "train", "--recipe", str(self.recipe), "--run", str(run), "--data", str(self.data),
            "--checkpoint-every", "2",
        ]  # fmt: skip

    def execute(
        self, arguments: list[str], script: str | None = None, sources: Path | None = None
    ) -> tuple[int, str]:
        start = ["-c", script] if script else ["-m", "service.cli"]
        done = subprocess.run(
            [sys.executable, *start, *arguments],
            capture_output=True, text=True, timeout=280, check=False, cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
                 "CUDA_VISIBLE_DEVICES": "", "REQUERY_CACHE_DIR": str(self.folder / "cache"),
                 "REQUERY_MODEL_SOURCES": str(sources or "")},
        )  # fmt: skip
        return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("training")
    base, data = folder / "base", folder / "data"
    write_base(base)
    shop_tables().save(data)
    recipe = tiny_recipe(base)
    path = folder / "micro.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return Place(folder, data, path)


@pytest.fixture(scope="module")
def straight(place: Place) -> Path:
    """A run that nothing disturbed."""
    run = place.folder / "straight"
    code, output = place.execute(place.command(run))
    assert code == 0, output
    return run


@pytest.mark.timeout(600)
def test_a_run_ends_with_a_version_that_the_store_verifies(place: Place, straight: Path) -> None:
    store = Store([FolderSource(straight / "version")], place.folder / "cache")
    report = store.verify("micro-1")
    assert report.ok, report
    manifest = store.get("micro-1").manifest
    record = manifest.training
    assert record["recipe"]["name"] == "micro-1"
    assert [stage["kind"] for stage in record["stages"]] == ["domain", "sft"]
    assert set(record["data"]) == {
        f"{name}.parquet"
        for name in ("catalogue", "interactions", "judgements", "queries", "rewrites")
    }
    assert {"commit", "libraries", "machine", "pairs", "queries", "seconds"} <= set(record)
    sft = record["stages"][1]
    assert sft["tokens"] >= 2000
    assert {"write", "tag", "tag_accuracy"} <= set(sft["last"])
    figures = [json.loads(line) for line in (straight / "figures.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in figures} == {0, 1}


@pytest.mark.timeout(600)
def test_a_finished_run_does_nothing_again(place: Place, straight: Path) -> None:
    figures = (straight / "figures.jsonl").read_bytes()
    stages = [(straight / f"stage-{n}.json").stat().st_mtime_ns for n in (0, 1)]
    code, output = place.execute(place.command(straight))
    assert code == 0, output
    assert (straight / "figures.jsonl").read_bytes() == figures
    assert [(straight / f"stage-{n}.json").stat().st_mtime_ns for n in (0, 1)] == stages


@pytest.mark.timeout(600)
def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_happened(
    place: Place, straight: Path
) -> None:
    run = place.folder / "killed"
    code, output = place.execute(place.command(run), KILLED)
    assert code == -signal.SIGKILL, output
    assert (run / "stage-0.json").is_file()
    assert not (run / "stage-1.json").exists()
    assert not (run / "version").exists()
    # A second kill, in the middle of writing the next checkpoint, would have left this.
    torn = shutil.copytree(run / "stage-1" / "checkpoint-4", run / "stage-1" / "checkpoint-6")
    (torn / "trainer_state.json").unlink()

    code, output = place.execute(place.command(run))
    assert code == 0, output
    figures = [json.loads(line) for line in (run / "figures.jsonl").read_text().splitlines()]
    assert len([line for line in figures if line["stage"] == 0 and "train_runtime" in line]) == 1
    assert Store([FolderSource(run / "version")], place.folder / "cache").verify("micro-1").ok

    name = "adapter-1/adapter_model.safetensors"
    expected, found = load_file(straight / name), load_file(run / name)
    assert expected.keys() == found.keys()
    assert any("trainable_tokens" in key for key in found)
    fresh = load_file(straight / "adapter-0" / "adapter_model.safetensors")
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor)
    assert any(not torch.equal(fresh[key], expected[key]) for key in expected)


@pytest.mark.timeout(600)
def test_a_run_killed_between_training_and_its_record_goes_on(place: Place, straight: Path) -> None:
    run = place.folder / "unrecorded"
    shutil.copytree(straight, run)
    (run / "stage-1.json").unlink()
    shutil.rmtree(run / "adapter-1")
    shutil.rmtree(run / "version")
    code, output = place.execute(place.command(run))
    assert code == 0, output
    name = "adapter-1/adapter_model.safetensors"
    expected, found = load_file(straight / name), load_file(run / name)
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor)


@pytest.mark.timeout(900)
def test_a_run_samples_from_the_serving_engine_and_its_version_is_measured(place: Place) -> None:
    recipe = yaml.safe_load(place.recipe.read_text())
    sft = recipe["stages"][1]
    recipe |= {
        "name": "micro-2",
        "stages": [
            recipe["stages"][0],
            {"kind": "sample", "queries": 5, "per_query": 3, "temperature": 1.5},
            # What an untrained model says by chance may be nothing to learn from.
            sft | {"match_samples": False},
        ],
        "decoding": {"temperatures": [0.0, 1.0], "max_tokens": 16},
    }
    path = place.folder / "micro-2.yaml"
    path.write_text(yaml.safe_dump(recipe))
    run = place.folder / "sampled"
    command = Place(place.folder, place.data, path).command(run)
    code, output = place.execute(command)
    assert code == 0, output
    record = json.loads((run / "stage-1.json").read_text())
    # An untrained model mostly runs out of tokens before a tag; those samples are not counted.
    assert record["kind"] == "sample"
    assert 0 <= record["distinct"] <= record["samples"] <= 15
    assert json.loads((run / "samples-1.json").read_text()) == [] or record["samples"]
    assert json.loads((run / "stage-2.json").read_text())["tokens"] >= 2000

    figures, drawn = place.folder / "figures.json", place.folder / "drawn"
    code, output = place.execute(
        [
            "evaluate", "micro-2", "--source", str(run / "version"), "--data", str(place.data),
            "--fold", "development", "--out", str(figures), "--drawn", str(drawn),
        ]
    )  # fmt: skip
    assert code == 0, output
    assert "Version micro-2, development fold" in output
    result = json.loads(figures.read_text())
    (path,) = drawn.iterdir()
    kept = json.loads(path.read_text())
    assert set(result["rows"]) >= {"plain query", "unfiltered", "version"}
    assert result["rows"]["plain query"]["all"]["queries"] == len(kept["candidates"])
    assert all(len(found) == 2 for found in kept["candidates"].values())
    assert len(kept["scores"]) == len(kept["labels"])
    assert all(0.0 <= score <= 1.0 for score in kept["scores"])
    assert 0.0 <= result["tagging"]["auc"][0] <= 1.0


# Ends the process, as the kernel would, right after the first checkpoint of the stage that aligns.
KILLED_ALIGNING = KILLED.replace("global_step == 4", "global_step == 2")


@pytest.mark.timeout(900)
def test_a_killed_alignment_goes_on_and_ends_as_if_nothing_had_happened(place: Place) -> None:
    recipe = yaml.safe_load(place.recipe.read_text())
    recipe |= {
        "name": "micro-3",
        "stages": [
            recipe["stages"][1],
            {
                "kind": "grpo", "steps": 4, "queries_per_step": 2, "group": 4,
                "learning_rate": 1e-2, "rewards": {"gain": 1.0, "rules": 0.5},
                "row_tokens": 128,
            },
            {"kind": "tags", "queries": 40},
        ],
        "decoding": {"temperatures": [0.0], "max_tokens": 40},
    }  # fmt: skip
    path = place.folder / "micro-3.yaml"
    path.write_text(yaml.safe_dump(recipe))
    here = Place(place.folder, place.data, path)
    straight, killed = place.folder / "aligned", place.folder / "aligned-killed"
    code, output = here.execute(here.command(straight))
    assert code == 0, output
    code, output = here.execute(here.command(killed), KILLED_ALIGNING)
    assert code == -signal.SIGKILL, output
    assert (killed / "stage-0.json").is_file()
    assert not (killed / "stage-1.json").exists()
    code, output = here.execute(here.command(killed))
    assert code == 0, output

    name = "adapter_model.safetensors"
    before = load_file(straight / "adapter-0" / name)
    expected = load_file(straight / "adapter-1" / name)
    found = load_file(killed / "adapter-1" / name)
    # The reference, a second adapter, stays behind.
    assert before.keys() == expected.keys() == found.keys()
    assert not (straight / "adapter-1" / "ref").exists()
    assert any(not torch.equal(before[key], expected[key]) for key in expected)
    for key, tensor in expected.items():
        torch.testing.assert_close(found[key], tensor)
    record = json.loads((straight / "stage-1.json").read_text())
    assert (record["steps"], record["samples"], record["queries"]) == (4, 32, 8)
    assert {"reward", "gain", "rules", "kl", "tag"} <= set(record["first"])
    # The last stage changed one row, whatever the ones before had left.
    tagged = load_file(straight / "adapter-2" / name)
    (rows,) = (key for key in tagged if not torch.equal(tagged[key], expected[key]))
    assert (tagged[rows] != expected[rows]).any(dim=1).sum() == 1
    fitted = json.loads((straight / "stage-2.json").read_text())
    assert fitted["pairs"] > 0
    assert 0.0 <= fitted["after"]["accuracy"] <= 1.0
    # Alignment begins where the reference is.
    first = json.loads((straight / "figures.jsonl").read_text().splitlines()[-5])
    assert first["step"] == 1
    assert abs(first["kl"]) < 1e-2
    assert (straight / "curves-1.png").is_file()
    assert Store([FolderSource(killed / "version")], place.folder / "cache").verify("micro-3").ok


@pytest.mark.timeout(900)
def test_a_preference_stage_goes_on_from_a_version(place: Place, straight: Path) -> None:
    recipe = yaml.safe_load(place.recipe.read_text())
    recipe |= {
        "name": "micro-4",
        "start": "micro-1",
        "stages": [
            {
                "kind": "dpo", "queries": 12, "per_query": 4, "temperature": 2.0, "batch": 2,
                "rewards": {"gain": 1.0, "rules": 1.0}, "min_margin": 0.01, "learning_rate": 1e-2,
            },
        ],
        "decoding": {"temperatures": [0.0], "max_tokens": 8},
    }  # fmt: skip
    path = place.folder / "micro-4.yaml"
    path.write_text(yaml.safe_dump(recipe))
    here = Place(place.folder, place.data, path)
    run = place.folder / "preferred"
    code, output = here.execute(here.command(run), sources=straight / "version")
    if "has no pair of samples" in output:
        # What an untrained model says by chance may all be worth nothing; that is said plainly.
        assert code == 1
        assert "min_margin" in output
        return
    assert code == 0, output
    name = "adapter_model.safetensors"
    before = load_file(straight / "version" / "micro-1" / name)
    after = load_file(run / "adapter-0" / name)
    assert any(not torch.equal(before[k].float(), after[k]) for k in after)
    record = json.loads((run / "record.json").read_text())
    assert record["start"]["version"] == "micro-1"
    assert record["stages"][0]["pairs"] == len(json.loads((run / "samples-0.json").read_text()))


@pytest.mark.timeout(600)
def test_a_start_that_is_not_there_is_said(place: Place) -> None:
    recipe = yaml.safe_load(place.recipe.read_text()) | {"name": "micro-5", "start": "nowhere-1"}
    path = place.folder / "micro-5.yaml"
    path.write_text(yaml.safe_dump(recipe))
    here = Place(place.folder, place.data, path)
    code, output = here.execute(here.command(place.folder / "nowhere"))
    assert code == 1
    assert "nowhere-1" in output
    assert "Traceback" not in output
