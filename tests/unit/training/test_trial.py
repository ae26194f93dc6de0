from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from model_store.manifest import FilterSpec
from model_store.store import check_folder
from service.engine.protocol import Candidate
from training.recipe import load_recipe
from training.trial import draw, pack_adapter, trial_version

SHIPPED = Path(__file__).parents[3] / "training" / "recipes" / "sft-1.yaml"


class Scripted:
    """An engine that answers with the query itself, the longer ones later."""

    def __init__(self, fail_on: str | None = None) -> None:
        self.running = self.peak = self.cancelled = 0
        self._fail_on = fail_on

    async def generate(self, query: str) -> AsyncIterator[Candidate]:
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            for _ in range(len(query)):
                await asyncio.sleep(0)
            if query == self._fail_on:
                raise RuntimeError("engine")
            yield Candidate(text=f"{query}!", token_ids=(1,), relevance=0.5)
            yield Candidate(text=f"{query}?", token_ids=(2,), relevance=None)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


async def test_every_query_is_drawn_once_and_only_so_many_at_a_time() -> None:
    engine = Scripted()
    queries = ["q" * n for n in range(1, 41)]
    drawn = [item async for item in draw(engine, queries, concurrency=4)]  # type: ignore[arg-type]
    assert sorted(q for q, _ in drawn) == queries
    assert all([c.text for c in found] == [f"{q}!", f"{q}?"] for q, found in drawn)
    assert engine.peak <= 4
    assert engine.running == 0


async def test_no_queries_no_draw() -> None:
    assert [item async for item in draw(Scripted(), [])] == []  # type: ignore[arg-type]


async def test_a_failure_stops_the_others() -> None:
    engine = Scripted(fail_on="b")
    queries = ["a" * 900, "b", "c" * 900]
    with pytest.raises(RuntimeError, match="engine"):
        async for _ in draw(engine, queries, concurrency=3):  # type: ignore[arg-type]
            pass
    await asyncio.sleep(0)
    assert engine.running == 0


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "adapter_config.json").write_text(
        json.dumps({"peft_type": "LORA", "base_model_name_or_path": "/home/somebody/base"})
    )
    save_file({"w": torch.randn(4, 4)}, folder / "adapter_model.safetensors")
    return folder


def test_an_adapter_becomes_a_version(adapter: Path, tmp_path: Path) -> None:
    recipe = load_recipe(SHIPPED)
    folder = tmp_path / "out" / recipe.name
    folder.mkdir(parents=True)
    (folder / "README.md").write_text("The model card.\n")
    (folder / "brands.txt").write_text("dewalt\n")
    manifest = pack_adapter(adapter, recipe, folder, training={"seed": 7})
    assert check_folder(folder) == manifest
    assert set(manifest.files) == {
        "README.md", "adapter_config.json", "adapter_model.safetensors", "brands.txt",
    }  # fmt: skip
    assert manifest.training == {"seed": 7}
    weights = load_file(folder / "adapter_model.safetensors")["w"]
    original = load_file(adapter / "adapter_model.safetensors")["w"]
    assert weights.dtype == torch.bfloat16
    torch.testing.assert_close(weights, original.to(torch.bfloat16))
    assert "somebody" not in (folder / "adapter_config.json").read_text()


def test_a_trial_needs_no_brands(adapter: Path, tmp_path: Path) -> None:
    recipe = load_recipe(SHIPPED)
    version = trial_version(adapter, recipe, tmp_path / "trial")
    assert version.name == recipe.name
    assert version.manifest.filter == FilterSpec()
    # A killed run packs again over what is there.
    assert trial_version(adapter, recipe, tmp_path / "trial").digest == version.digest
