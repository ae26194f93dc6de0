from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from asgi_lifespan import LifespanManager

from loadtests.bench.engine_options import EngineOptions
from loadtests.bench.hf_server import Batcher, Model, Rewritten, create_app
from loadtests.bench.versions import BenchVersions
from loadtests.processes import until
from model_store.manifest import DecodingSpec, WeightsSpec
from model_store.store import pack_version
from tests.support.model_versions import PROMPT, real_base
from tests.support.tiny_llama import write_base
from tests.support.waiting import turns


class FakeModel:
    """Notes its batches, and waits to be let on."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.go_on = threading.Event()

    async def has_begun(self) -> bool:
        return bool(self.batches)

    def rewrite(self, queries: Sequence[str]) -> list[Rewritten]:
        self.batches.append(list(queries))
        assert self.go_on.wait(60)
        if "bad" in queries:
            raise ValueError("too long")
        return [Rewritten([(q.upper(), 0.5)], 3, 4) for q in queries]


@contextmanager
def batching(model: FakeModel, most: int) -> Iterator[Batcher]:
    batcher = Batcher(cast("Model", model), most)
    task = asyncio.ensure_future(batcher.run())
    try:
        yield batcher
    finally:
        model.go_on.set()
        task.cancel()


async def test_what_waits_goes_into_one_batch() -> None:
    model = FakeModel()
    with batching(model, 3) as batcher:
        first = asyncio.ensure_future(batcher.rewrite("a"))
        assert await until(model.has_begun, 60.0)
        rest = [asyncio.ensure_future(batcher.rewrite(q)) for q in "bcde"]
        await turns()
        model.go_on.set()
        done = await asyncio.gather(first, *rest)
    assert [one.rewrites[0][0] for one in done] == list("ABCDE")
    assert model.batches == [["a"], ["b", "c", "d"], ["e"]]


async def test_a_batch_that_fails_is_told_to_all_in_it_and_the_next_goes_on() -> None:
    model = FakeModel()
    model.go_on.set()
    with batching(model, 1) as batcher:
        with pytest.raises(RuntimeError, match="too long"):
            await batcher.rewrite("bad")
        assert (await batcher.rewrite("a")).generated == 4


async def test_it_is_asked_over_http() -> None:
    model = FakeModel()
    model.go_on.set()
    app = create_app(Batcher(cast("Model", model)))
    async with LifespanManager(app) as running:
        transport = httpx.ASGITransport(app=running.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://bench") as client:
            answer = await client.post("/rewrite", json={"query": "a"})
            assert (await client.get("/health")).json() == {"ok": True}
    assert answer.json() == {
        "rewrites": [{"text": "A", "relevance": 0.5}],
        "work": {"prompt": 3, "generated": 4, "tagged": 1},
    }


@pytest.mark.integration
@pytest.mark.timeout(600)  # importing transformers alone may take minutes on a busy machine
def test_a_real_model_draws_and_tags_as_many_candidates_as_are_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions = BenchVersions.under(tmp_path)
    folder = versions.source / "tiny-1"
    folder.mkdir(parents=True)
    write_base(folder)
    for extra in folder.iterdir():
        if extra.name not in ("config.json", "tokenizer.json", "model.safetensors"):
            extra.unlink()
    (folder / "README.md").write_text("For a test.\n")
    pack_version(
        folder, name="tiny-1", base=real_base(), weights=WeightsSpec(kind="full"), prompt=PROMPT,
        decoding=DecodingSpec(temperatures=(0.01,) * 3, max_tokens=6),
    )  # fmt: skip
    monkeypatch.setenv("REQUERY_DEVICE", "cpu")
    options = EngineOptions.of(*versions.find("tiny-1"))
    model = Model(options)
    found: list[Any] = model.rewrite(["steele stake", "rug"])
    prompts, _ = options.prompts()
    for query, one in zip(["steele stake", "rug"], found, strict=True):
        assert len(one.rewrites) == 3
        assert all(0.0 <= relevance <= 1.0 for _, relevance in one.rewrites)
        assert 3 <= one.generated <= 3 * 6
        assert one.prompt > 2 * 3 * len(prompts.rewrite_prompt(query)) - 1
    # Alone or in a batch with a longer one: the padding changes nothing.
    (alone,) = model.rewrite(["rug"])
    assert alone.generated == found[1].generated
    assert [r for _, r in alone.rewrites] == pytest.approx(
        [r for _, r in found[1].rewrites], abs=0.05
    )
