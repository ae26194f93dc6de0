"""What a user would build: vLLM's own HTTP server, and a client that asks it twice for each query.

The first call has the candidates generated (one request with ``n``, the prompt as token ids, ending
at the same ids as the service's). The second one tags them all: one request with a prompt for each,
one token, and the log probabilities of just the two labels. That is the cheapest way that the API
has: one call for each candidate, or the log probabilities of the whole vocabulary, cost more.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import orjson

from loadtests.bench.child import Child, send
from loadtests.bench.engine_options import EngineOptions, server_options
from loadtests.bench.peer import PeerFailed, Work
from loadtests.client import HttpTransport
from loadtests.exchange import NoReply
from model_store.prompt import PromptFormat
from service.engine.scoring import relevance
from tests.support.redis_server import free_port

_MODEL = "bench"
_PATH = "/v1/completions"


class TwoCalls:
    """The client.

    Args:
        transport: to the server.
        prompts: of the version.
        stop_ids: ids that end a generation.
        temperatures: one candidate each; the API takes one for all of them.
        max_tokens: of a candidate.

    Raises:
        ValueError: the temperatures are not all the same.
    """

    def __init__(
        self,
        transport: HttpTransport,
        prompts: PromptFormat,
        stop_ids: list[int],
        *,
        temperatures: tuple[float, ...],
        max_tokens: int,
    ) -> None:
        if len(set(temperatures)) != 1:
            raise ValueError("one request with n completions has one temperature")
        self._transport, self._prompts, self._stop_ids = transport, prompts, stop_ids
        self._n, self._temperature, self._max_tokens = (
            len(temperatures),
            temperatures[0],
            max_tokens,
        )

    async def rewrites(self, query: str) -> tuple[list[tuple[str, float]], Work]:
        """Text and relevance of each candidate, and the work that it was.

        Raises:
            PeerFailed: there is no such answer.
        """
        query = self._prompts.normalise(query)
        prompt = self._prompts.rewrite_prompt(query)
        drawn = await self._call(
            {
                "prompt": prompt,
                "n": self._n,
                "max_tokens": self._max_tokens,
                "temperature": self._temperature,
                "stop_token_ids": self._stop_ids,
                "ignore_eos": True,
                "return_token_ids": True,
            }
        )
        choices = drawn["choices"]
        bodies = [self._body(choice["token_ids"]) for choice in choices]
        labels = self._prompts.labels
        tags = await self._call(
            {
                "prompt": [self._prompts.tag_prompt(query, body) for body in bodies],
                "max_tokens": 1,
                "temperature": 0.0,
                "logprobs": 2,
                "logprob_token_ids": [labels.relevant, labels.irrelevant],
                "return_tokens_as_token_ids": True,
            }
        )
        relevances = [
            self._relevance(choice) for choice in sorted(tags["choices"], key=lambda c: c["index"])
        ]
        if not len(choices) == len(relevances) == self._n:
            raise PeerFailed(f"{len(choices)} completions and {len(relevances)} tags")
        work = Work(
            # One prompt is reported for all n, and is what each of them begins with.
            drawn["usage"]["prompt_tokens"] * self._n + tags["usage"]["prompt_tokens"],
            drawn["usage"]["completion_tokens"],
            tags["usage"]["completion_tokens"],
        )
        return list(zip((choice["text"] for choice in choices), relevances, strict=True)), work

    def _body(self, ids: list[int]) -> list[int]:
        return ids[:-1] if ids and ids[-1] in self._stop_ids else ids

    def _relevance(self, choice: dict[str, Any]) -> float:
        (told,) = choice["logprobs"]["top_logprobs"]
        by_id = {int(token.rpartition(":")[2]): value for token, value in told.items()}
        return relevance(self._prompts.labels, by_id)

    async def _call(self, body: dict[str, Any]) -> dict[str, Any]:
        try:
            code, _, content = await self._transport.fetch(
                "POST",
                _PATH,
                orjson.dumps({"model": _MODEL, **body}),
                {"content-type": "application/json"},
            )
        except NoReply as error:
            raise PeerFailed(f"no answer: {error.failure.value}") from error
        if code != 200:
            raise PeerFailed(f"answered {code}: {content[:300].decode(errors='replace')}")
        answer: dict[str, Any] = orjson.loads(content)
        return answer


class OpenAiPeer:
    """vLLM's server and that client.

    Args:
        options: the service's own, as far as the server takes them.
        folder: for its log.
    """

    name = "vLLM server, two calls"

    def __init__(self, options: EngineOptions, folder: Path) -> None:
        self._options = options
        self._port = free_port()
        self._child = Child(
            [
                sys.executable, "-m", "vllm.entrypoints.openai.api_server",
                "--model", str(options.folder), "--served-model-name", _MODEL,
                "--host", "127.0.0.1", "--port", str(self._port),
                "--disable-uvicorn-access-log", *server_options(options.arguments),
            ],
            folder / "vllm_server.log",
            options.environment,
        )  # fmt: skip
        self._transport = HttpTransport(f"http://127.0.0.1:{self._port}")
        self._client: TwoCalls | None = None
        self._work = Work()

    @property
    def setup(self) -> dict[str, Any]:
        """See :class:`Peer`."""
        return {
            "server": "vllm.entrypoints.openai.api_server",
            "options": server_options(self._options.arguments),
            "client": "n completions, then all tags in one call",
        }

    async def start(self) -> None:
        """See :class:`Peer`."""
        prompts, stop_ids = self._options.prompts()
        decoding = self._options.manifest.decoding
        self._child.start()
        await self._child.until_answers(f"http://127.0.0.1:{self._port}", "/health")
        await self._transport.__aenter__()
        self._client = TwoCalls(
            self._transport,
            prompts,
            stop_ids,
            temperatures=decoding.temperatures,
            max_tokens=decoding.max_tokens,
        )

    async def ask(self, query: str) -> None:
        """See :class:`Peer`."""
        if self._client is None:
            raise PeerFailed("vLLM's server has not been started")
        _, work = await self._client.rewrites(query)
        self._work += work

    async def work(self) -> Work:
        """See :class:`Peer`."""
        return self._work

    def freeze(self) -> None:
        """See :class:`Peer`."""
        send(self._child.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """See :class:`Peer`."""
        send(self._child.pid, signal.SIGCONT)

    async def close(self) -> None:
        """See :class:`Peer`."""
        await self._transport.__aexit__(None, None, None)
        await self._child.close()
