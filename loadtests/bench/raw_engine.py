"""vLLM's ``AsyncLLM`` alone, in a process of its own: no HTTP, no cache, no filters.

Run as ``python -m loadtests.bench.raw_engine <version> [plain]`` with the settings of the bench
versions.
It is asked by lines of JSON on standard input (``{"id": 0, "query": "..."}``) and answers in lines
on standard output, in the order in which it is done. The engine is started with the service's own
arguments and extension, and asked for the same requests: what is faster in the service's misses is
noise, and what is slower is the service. ``plain`` leaves the extension out: that is vLLM as it
comes.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from loadtests.bench.engine_options import EngineOptions
from loadtests.bench.versions import BenchVersions
from model_store.prompt import PromptFormat
from model_store.store import CACHE_VARIABLE, SOURCES_VARIABLE
from service.engine.scoring import relevance
from service.engine.worker.extension import WorkerExtension

_WARM_UP = "3/4 in. galvanized steel stake"
PLAIN = "plain"
"""Argument for an engine without the service's extension."""


class RawEngine:
    """The engine and one way to ask it.

    Args:
        options: what it is started with.
        extended: with what the service adds inside the engine core.
    """

    def __init__(self, options: EngineOptions, *, extended: bool = True) -> None:
        self._options = options
        self._extended = extended
        self._prompts, self._stop_ids = options.prompts()
        self._llm: Any = None
        self._params: Sequence[Any] = ()
        self._ids = itertools.count()

    async def start(self) -> None:
        """Load it, extend its core as the service does, and generate twice."""
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**self._options.arguments))
        labels, rpc = self._prompts.labels, self._llm.collective_rpc
        await rpc(WorkerExtension.end_with_parent.__name__)
        if self._extended:
            ids = [labels.relevant, labels.irrelevant]
            await rpc(WorkerExtension.extend.__name__, args=(ids,))
        self._params = self._sampling(self._prompts)
        for _ in range(2):
            await self.generate(_WARM_UP)

    def _sampling(self, prompts: PromptFormat) -> list[Any]:
        from vllm.sampling_params import RequestOutputKind, SamplingParams

        decoding = self._options.manifest.decoding
        return [
            SamplingParams(
                temperature=temperature,
                top_p=decoding.top_p,
                max_tokens=decoding.max_tokens,
                stop_token_ids=self._stop_ids,
                ignore_eos=True,
                logprob_token_ids=[prompts.labels.relevant, prompts.labels.irrelevant],
                flat_logprobs=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
                skip_clone=True,
            )
            for temperature in decoding.temperatures
        ]

    async def generate(self, query: str) -> dict[str, int]:
        """All candidates of a query, decoded and tagged; tokens of the work that it was."""
        prompt = self._prompts.rewrite_prompt(self._prompts.normalise(query))
        outputs = await asyncio.gather(*(self._one(prompt, params) for params in self._params))
        for output in outputs:
            self._prompts.decode(output.token_ids[:-1])
            last = {token: entry.logprob for token, entry in output.logprobs[-1].items()}
            relevance(self._prompts.labels, last)
        return {
            "prompt": len(prompt) * len(outputs),
            "generated": sum(len(output.token_ids) for output in outputs),
        }

    async def _one(self, prompt: list[int], params: Any) -> Any:
        from vllm.inputs.engine import tokens_input

        stream = self._llm.generate(tokens_input([*prompt]), params, f"raw-{next(self._ids)}")
        final = [output async for output in stream][-1]
        return final.outputs[0]


async def _serve(engine: RawEngine, out: BinaryIO) -> None:
    def say(content: dict[str, Any]) -> None:
        out.write(orjson.dumps(content) + b"\n")
        out.flush()

    async def answer(asked: dict[str, Any]) -> None:
        try:
            say({"id": asked["id"], **await engine.generate(asked["query"])})
        except Exception as error:  # noqa: BLE001 - told to who asked
            say({"id": asked["id"], "error": f"{type(error).__name__}: {error}"})

    await engine.start()
    say({"ready": True})
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as group:
        while line := await loop.run_in_executor(None, sys.stdin.buffer.readline):
            group.create_task(answer(orjson.loads(line)))


def main(name: str, *, extended: bool = True) -> None:
    """Answer until standard input is closed."""
    # Standard output is for answers alone; whatever else is printed goes to standard error.
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        versions = BenchVersions(
            Path(os.environ[SOURCES_VARIABLE]), Path(os.environ[CACHE_VARIABLE])
        )
        options = EngineOptions.of(*versions.find(name))
        # Before vLLM is imported, which reads them.
        os.environ.update(options.environment)
        asyncio.run(_serve(RawEngine(options, extended=extended), out))
        # As the service does: taking vLLM apart in order takes seconds and serves nobody.
        out.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], extended=PLAIN not in sys.argv[2:])
