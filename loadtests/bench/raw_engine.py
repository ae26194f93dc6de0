"""vLLM's ``AsyncLLM`` alone: no cache, no filters, and HTTP of next to no cost.

Run as ``python -m loadtests.bench.raw_engine <port> <version> [plain]`` with the settings of the
bench versions. The engine has the service's own arguments and extension and gets the same requests,
so the difference to a miss of the service is what the service adds. ``plain`` leaves the extension
out: this is vLLM without additions.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from collections.abc import Sequence
from typing import Any

import orjson

from loadtests.bare import response, serve
from loadtests.bench.engine_options import EngineOptions
from loadtests.bench.versions import BenchVersions
from service.engine.scoring import relevance
from service.engine.worker.extension import WorkerExtension

_WARM_UP = "3/4 in. galvanized steel stake"
PLAIN = "plain"
"""Argument for an engine without the service's extension."""


class RawEngine:
    """The engine and one way to ask it.

    Args:
        options: what it is started with.
        extended: with the service's additions inside the engine core.
    """

    def __init__(self, options: EngineOptions, *, extended: bool = True) -> None:
        self._options = options
        self._extended = extended
        self._prompts, self._stop_ids = options.prompts()
        self._llm: Any = None
        self._params: Sequence[Any] = ()
        self._ids = itertools.count()

    async def start(self) -> None:
        """Load the model, extend the core as the service does, and generate twice."""
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.sampling_params import RequestOutputKind, SamplingParams
        from vllm.v1.engine.async_llm import AsyncLLM

        self._llm = AsyncLLM.from_engine_args(AsyncEngineArgs(**self._options.arguments))
        labels = [self._prompts.labels.relevant, self._prompts.labels.irrelevant]
        await self._llm.collective_rpc(WorkerExtension.end_with_parent.__name__)
        if self._extended:
            await self._llm.collective_rpc(WorkerExtension.extend.__name__, args=(labels,))
        decoding = self._options.manifest.decoding
        self._params = [
            SamplingParams(
                temperature=temperature,
                top_p=decoding.top_p,
                max_tokens=decoding.max_tokens,
                stop_token_ids=self._stop_ids,
                ignore_eos=True,
                logprob_token_ids=labels,
                flat_logprobs=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
                skip_clone=True,
            )
            for temperature in decoding.temperatures
        ]
        for _ in range(2):
            await self.rewrite(_WARM_UP)

    async def rewrite(self, query: str) -> dict[str, int]:
        """Decode and tag all candidates of a query; the work in tokens."""
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

    async def answer(self, body: bytes) -> bytes:
        """Response to a request; errors are a 500."""
        try:
            work = await self.rewrite(orjson.loads(body)["query"])
        except Exception as error:  # noqa: BLE001 - reported to the caller
            return response(f"{type(error).__name__}: {error}".encode(), 500)
        return response(orjson.dumps({"work": work}))


async def _main(engine: RawEngine, port: int) -> None:
    await engine.start()
    # Without a body it is a question for its health.
    await serve(port, lambda body: engine.answer(body) if body else response(b"{}"))


if __name__ == "__main__":
    _port, _version, *_more = sys.argv[1:]
    _options = EngineOptions.of(*BenchVersions.of_environment().find(_version))
    # Before vLLM is imported, because it reads them then.
    os.environ.update(_options.environment)
    asyncio.run(_main(RawEngine(_options, extended=PLAIN not in _more), int(_port)))
