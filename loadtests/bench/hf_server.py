"""transformers behind FastAPI: the simple way to serve the same weights.

Run as ``python -m loadtests.bench.hf_server <port> <version>``. Waiting requests form the next
batch, at most :data:`MAX_QUERIES`. One call of ``generate`` makes their candidates, and a forward
pass over prompt and rewrite tags them, as the documentation of transformers suggests.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import uvicorn
from fastapi import FastAPI

from loadtests.bench.engine_options import EngineOptions
from loadtests.bench.versions import BenchVersions
from service.api.schemas import RewriteRequest
from service.engine.scoring import label_probability

MAX_QUERIES = 16
"""Queries in a batch."""

Rewrites = list[tuple[str, float]]


@dataclass(frozen=True, slots=True)
class Rewritten:
    """The candidates of one query, and their work in tokens."""

    rewrites: Rewrites
    prompt: int
    generated: int


class Model:
    """The merged weights in bfloat16, with the threads of the service's engine.

    Args:
        options: of the bench version.
    """

    def __init__(self, options: EngineOptions) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        self._torch: Any = torch
        self._prompts, stop_ids = options.prompts()
        self._stop_ids = frozenset(stop_ids)
        self._decoding = options.manifest.decoding
        self._device = options.device
        if options.device == "cpu":
            self._torch.set_num_threads(int(options.environment["OMP_NUM_THREADS"]))
        model: Any = AutoModelForCausalLM.from_pretrained(
            options.folder, dtype=torch.bfloat16, local_files_only=True
        )
        self._model = model.to(options.device).eval()

    def rewrite(self, queries: Sequence[str]) -> list[Rewritten]:
        """The candidates of each query, in order."""
        prompts = [self._prompts.rewrite_prompt(self._prompts.normalise(q)) for q in queries]
        n = len(self._decoding.temperatures)
        ids, mask = self._padded(prompts)
        with self._torch.inference_mode():
            drawn = self._model.generate(
                input_ids=ids,
                attention_mask=mask,
                do_sample=True,
                temperature=self._decoding.temperatures[0],
                top_p=self._decoding.top_p,
                top_k=0,
                max_new_tokens=self._decoding.max_tokens,
                num_return_sequences=n,
                eos_token_id=sorted(self._stop_ids),
                pad_token_id=0,
            )[:, ids.shape[1] :].tolist()
        whole = [self._until_stop(row) for row in drawn]
        bodies = [row[:-1] if row[-1] in self._stop_ids else row for row in whole]
        tagged = [[*prompts[i // n], *body] for i, body in enumerate(bodies)]
        tags = self._tags(tagged)
        found = []
        for i, prompt in enumerate(prompts):
            mine = slice(i * n, (i + 1) * n)
            texts = [self._prompts.decode(body) for body in bodies[mine]]
            found.append(
                Rewritten(
                    rewrites=list(zip(texts, tags[mine], strict=True)),
                    prompt=n * len(prompt) + sum(map(len, tagged[mine])),
                    generated=sum(map(len, whole[mine])),
                )
            )
        return found

    def _tags(self, sequences: Sequence[Sequence[int]]) -> list[float]:
        """Relevance at the end of each sequence."""
        ids, mask = self._padded(sequences)
        labels = self._prompts.labels
        with self._torch.inference_mode():
            logits = self._model(input_ids=ids, attention_mask=mask, logits_to_keep=1).logits
            two = logits[:, -1, [labels.relevant, labels.irrelevant]].float()
        # Only the difference counts, so logits serve as well as log probabilities.
        return [label_probability(relevant, irrelevant) for relevant, irrelevant in two.tolist()]

    def _padded(self, rows: Sequence[Sequence[int]]) -> tuple[Any, Any]:
        """Token ids and mask, shape [rows, longest], padded on the left."""
        longest = max(map(len, rows))
        ids = [[0] * (longest - len(row)) + list(row) for row in rows]
        mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
        return (
            self._torch.tensor(ids, device=self._device),
            self._torch.tensor(mask, device=self._device),
        )

    def _until_stop(self, row: list[int]) -> list[int]:
        """A row of a batch up to its end."""
        end = next((i for i, token in enumerate(row) if token in self._stop_ids), len(row) - 1)
        return row[: end + 1]


class Batcher:
    """Forms batches of the waiting queries.

    Args:
        model: has a method ``rewrite``.
        most: queries of a batch.
    """

    def __init__(self, model: Model, most: int = MAX_QUERIES) -> None:
        self._model, self._most = model, most
        self._waiting: asyncio.Queue[tuple[str, asyncio.Future[Rewritten]]] = asyncio.Queue()

    async def rewrite(self, query: str) -> Rewritten:
        """The candidates of a query."""
        answer: asyncio.Future[Rewritten] = asyncio.get_running_loop().create_future()
        await self._waiting.put((query, answer))
        return await answer

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            batch = [await self._waiting.get()]
            while len(batch) < self._most and not self._waiting.empty():
                batch.append(self._waiting.get_nowait())
            queries = [query for query, _ in batch]
            try:
                done = await asyncio.to_thread(self._model.rewrite, queries)
            except Exception as error:  # noqa: BLE001 - reported to each caller
                for _, answer in batch:
                    answer.set_exception(RuntimeError(f"{type(error).__name__}: {error}"))
                continue
            for (_, answer), one in zip(batch, done, strict=True):
                answer.set_result(one)


def create_app(batcher: Batcher) -> FastAPI:
    """``POST /rewrite`` and ``GET /health``."""

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(batcher.run())
        yield
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    app = FastAPI(lifespan=lifespan)

    @app.post("/rewrite")
    async def rewrite(body: RewriteRequest) -> dict[str, Any]:
        done = await batcher.rewrite(body.query)
        rewrites = [{"text": t, "relevance": round(r, 4)} for t, r in done.rewrites]
        work = {"prompt": done.prompt, "generated": done.generated, "tagged": len(rewrites)}
        return {"rewrites": rewrites, "work": work}

    @app.get("/health")
    async def health() -> dict[str, bool]:
        return {"ok": True}

    return app


def main(port: int, version: str) -> None:
    """Serve until the process ends."""
    options = EngineOptions.of(*BenchVersions.of_environment().find(version))
    os.environ.update(options.environment)  # the threads: before torch is imported
    app = create_app(Batcher(Model(options)))
    uvicorn.run(
        app, host="127.0.0.1", port=port, loop="uvloop", http="httptools", log_level="warning"
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
