"""The servers whose misses are compared, and the closed loop that loads them.

Each peer is a server process and a way to get tagged rewrites of a query from it. All peers have
the same weights.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import orjson

from loadtests.bench.engine_options import EngineOptions, server_options
from loadtests.bench.hf_server import MAX_QUERIES
from loadtests.bench.raw_engine import PLAIN
from loadtests.bench.versions import BenchVersions
from loadtests.client import HttpTransport
from loadtests.exchange import NoReply
from loadtests.processes import START_S, Child, ServerFailed
from loadtests.scenarios.traffic import rewrite
from loadtests.target import Target
from model_store.prompt import PromptFormat
from service.engine.scoring import relevance
from tests.support.redis_server import free_port

_PATIENCE_S = 60.0
_UNBOUNDED = {
    # The other peers have no deadlines, so the service must neither refuse nor cut short.
    "REQUERY_MAX_DEADLINE_MS": "600000",
    "REQUERY_ADMISSION_TARGET_MS": "600000",
}
_JSON = {"content-type": "application/json"}


@dataclass(frozen=True, slots=True)
class Work:
    """Work of a model, in tokens.

    Attributes:
        prompt: tokens of the prompts, counted for each sequence that starts with them.
        generated: tokens of the candidates, their end included; equal work means equal here.
        tagged: candidates that were tagged in a second pass.
    """

    prompt: int = 0
    generated: int = 0
    tagged: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __sub__(self, other: Work) -> Work:
        return Work(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))


Ask = Callable[[HttpTransport, str], Awaitable[Work]]
"""Gets the tagged candidates of a query from a server; the work that this took."""


class Peer:
    """A server process and one way to ask it.

    Args:
        name: of its figures.
        child: the process, not started.
        url: scheme, host and port.
        ask: gets all candidates of a query, generated and tagged.
        setup: its configuration, for the report.
        health: path that returns 200 once the server is ready.
    """

    def __init__(
        self,
        name: str,
        child: Child,
        url: str,
        ask: Ask,
        setup: Mapping[str, Any],
        health: str = "/health",
    ) -> None:
        self.name, self.child, self.setup = name, child, dict(setup)
        self._url, self._ask, self._health = url, ask, health
        self._transport = HttpTransport(url)
        self._work = Work()

    async def start(self) -> None:
        """Start the server and wait until it is ready.

        Raises:
            ServerFailed: it does not start.
        """
        self.child.start()
        await self.child.until_answers(self._url, self._health, START_S)
        await self._transport.__aenter__()

    async def ask(self, query: str) -> None:
        """Get all candidates of a query, generated and tagged.

        Raises:
            ServerFailed: the answer is missing or incomplete.
        """
        try:
            work = await self._ask(self._transport, query)
        except NoReply as error:
            raise ServerFailed(f"no answer: {error.failure.value}") from error
        self._work += work

    async def work(self) -> Work:
        """Work since the start."""
        return self._work

    def pause(self) -> None:
        """Stop its processes, so that they use no CPU."""
        self.child.pause()

    def resume(self) -> None:
        """Continue after :meth:`pause`."""
        self.child.resume()

    async def close(self) -> None:
        """End the server; idempotent."""
        await self._transport.__aexit__(None, None, None)
        await self.child.close()


class RequeryPeer(Peer):
    """``requery serve`` with a bench version.

    Args:
        version: its name.
        folder: for its log.
        settings: more settings of the service.
    """

    def __init__(self, version: str, folder: Path, settings: Mapping[str, str]) -> None:
        chosen = {**_UNBOUNDED, "REQUERY_DEFAULT_VERSION": version, **settings}
        self.target = Target(folder, chosen)
        self.stages: list[Mapping[str, float]] = []
        """Seconds of each stage, for each miss."""
        setup = {"settings": {k: v for k, v in chosen.items() if "_DIR" not in k}}
        super().__init__("Requery", self.target, self.target.url, self._miss, setup)

    async def start(self) -> None:
        """See :class:`Peer`."""
        await self.target.__aenter__()
        await self._transport.__aenter__()

    async def _miss(self, transport: HttpTransport, query: str) -> Work:
        reply = await transport.send(rewrite(query, "miss", deadline_s=_PATIENCE_S, named=True))
        if (reply.code, reply.source) != (200, "engine") or reply.status not in {"ok", "none"}:
            raise ServerFailed(f"answered {reply.code} {reply.status}, from {reply.source}")
        self.stages.append(reply.stages)
        return Work()

    async def work(self) -> Work:
        """See :class:`Peer`."""
        tokens: Counter[str] = Counter()
        for (name, labels), value in (await self.target.metrics()).items():
            if name == "requery_tokens_total":
                tokens[dict(labels)["kind"]] += int(value)  # of all versions
        return Work(tokens["prompt"], tokens["generated"])


async def post(transport: HttpTransport, path: str, body: dict[str, Any]) -> dict[str, Any]:
    """Body of the answer to a ``POST``.

    Raises:
        ServerFailed: the answer is not a 200.
    """
    code, _, content = await transport.fetch("POST", path, orjson.dumps(body), _JSON)
    if code != 200:
        raise ServerFailed(f"answered {code}: {content[:300].decode(errors='replace')}")
    answer: dict[str, Any] = orjson.loads(content)
    return answer


async def one_call(transport: HttpTransport, query: str) -> Work:
    """Ask a server of ours, which returns the work beside the rewrites."""
    return Work(**(await post(transport, "/rewrite", {"query": query}))["work"])


class TwoCalls:
    """Two calls of vLLM's own server: candidates, then their tags.

    The first call generates the candidates (``n``, the prompt as token ids, the same stop ids). The
    second one tags them all: a prompt for each, one token, the log probabilities of the two
    labels. This is the cheapest way that the API offers: a call for each candidate, or the log
    probabilities of the whole vocabulary, cost more.

    Args:
        prompts: of the version.
        stop_ids: ids that end a candidate.
        temperatures: one per candidate; the API takes one for all of them.
        max_tokens: of a candidate.

    Raises:
        ValueError: the temperatures differ.
    """

    def __init__(
        self,
        prompts: PromptFormat,
        stop_ids: list[int],
        *,
        temperatures: tuple[float, ...],
        max_tokens: int,
    ) -> None:
        if len(set(temperatures)) != 1:
            raise ValueError("one request with n completions has one temperature")
        self._prompts, self._stop_ids = prompts, stop_ids
        self._n = len(temperatures)
        self._sampling = {
            "n": self._n,
            "max_tokens": max_tokens,
            "temperature": temperatures[0],
            "stop_token_ids": stop_ids,
            "ignore_eos": True,
            "return_token_ids": True,
        }

    async def ask(self, transport: HttpTransport, query: str) -> Work:
        """Only the work of :meth:`rewrites`."""
        return (await self.rewrites(transport, query))[1]

    async def rewrites(
        self, transport: HttpTransport, query: str
    ) -> tuple[list[tuple[str, float]], Work]:
        """Text and relevance of each candidate, and the work.

        Raises:
            ServerFailed: an answer is missing or incomplete.
        """
        query = self._prompts.normalise(query)
        prompt = self._prompts.rewrite_prompt(query)
        drawn = await self._call(transport, {"prompt": prompt, **self._sampling})
        choices = drawn["choices"]
        bodies = [self._body(choice["token_ids"]) for choice in choices]
        labels = self._prompts.labels
        tags = await self._call(
            transport,
            {
                "prompt": [self._prompts.tag_prompt(query, body) for body in bodies],
                "max_tokens": 1,
                "temperature": 0.0,
                "logprobs": 2,
                "logprob_token_ids": [labels.relevant, labels.irrelevant],
                "return_tokens_as_token_ids": True,
            },
        )
        in_order = sorted(tags["choices"], key=lambda choice: choice["index"])
        if not len(choices) == len(in_order) == self._n:
            raise ServerFailed(f"{len(choices)} completions and {len(in_order)} tags")
        work = Work(
            # The API reports one prompt for all n candidates; each starts with it.
            drawn["usage"]["prompt_tokens"] * self._n + tags["usage"]["prompt_tokens"],
            drawn["usage"]["completion_tokens"],
            tags["usage"]["completion_tokens"],
        )
        return [
            (c["text"], self._relevance(t)) for c, t in zip(choices, in_order, strict=True)
        ], work

    async def _call(self, transport: HttpTransport, body: dict[str, Any]) -> dict[str, Any]:
        return await post(transport, "/v1/completions", {"model": "bench", **body})

    def _body(self, ids: list[int]) -> list[int]:
        return ids[:-1] if ids and ids[-1] in self._stop_ids else ids

    def _relevance(self, choice: dict[str, Any]) -> float:
        (entries,) = choice["logprobs"]["top_logprobs"]
        by_id = {int(token.rpartition(":")[2]): value for token, value in entries.items()}
        return relevance(self._prompts.labels, by_id)


def requery(versions: BenchVersions, version: str, folder: Path) -> Peer:
    """Serve with Requery."""
    return RequeryPeer(version, folder / "requery", versions.settings)


def _served(
    name: str,
    versions: BenchVersions,
    folder: Path,
    setup: Mapping[str, Any],
    module: str,
    *arguments: str,
) -> Peer:
    port = free_port()
    command = [sys.executable, "-m", f"loadtests.bench.{module}", str(port), *arguments]
    log = folder / f"{'_'.join((module, *arguments))}.log"
    child = Child(command, log, versions.settings)
    return Peer(name, child, f"http://127.0.0.1:{port}", one_call, setup)


def raw(versions: BenchVersions, version: str, folder: Path) -> Peer:
    """Serve with vLLM's engine and the service's additions alone."""
    setup = {"engine": "the service's own arguments, environment and extension"}
    return _served("raw AsyncLLM", versions, folder, setup, "raw_engine", version)


def plain(versions: BenchVersions, version: str, folder: Path) -> Peer:
    """Serve with vLLM's engine without additions."""
    name, setup = "raw AsyncLLM as vLLM comes", {"engine": "the service's arguments, environment"}
    return _served(name, versions, folder, setup, "raw_engine", version, PLAIN)


def transformers(versions: BenchVersions, version: str, folder: Path) -> Peer:
    """Serve with transformers behind FastAPI."""
    setup = {
        "dtype": "bfloat16",
        "threads": "as the service's engine",
        "batching": f"waiting queries, at most {MAX_QUERIES}",
    }
    return _served("transformers + FastAPI", versions, folder, setup, "hf_server", version)


def server(versions: BenchVersions, version: str, folder: Path) -> Peer:
    """Serve with vLLM's own HTTP server, asked twice for each query."""
    options = EngineOptions.of(*versions.find(version))
    prompts, stop_ids = options.prompts()
    decoding = options.manifest.decoding
    client = TwoCalls(
        prompts,
        stop_ids,
        temperatures=decoding.temperatures,
        max_tokens=decoding.max_tokens,
    )
    port = free_port()
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server",
        "--model", str(options.folder), "--served-model-name", "bench",
        "--host", "127.0.0.1", "--port", str(port),
        "--disable-uvicorn-access-log", *server_options(options.arguments),
    ]  # fmt: skip
    setup = {
        "server": "vllm.entrypoints.openai.api_server",
        "options": server_options(options.arguments),
        "client": "n completions, then all tags in one call",
    }
    child = Child(command, folder / "vllm_server.log", options.environment)
    return Peer("vLLM server, two calls", child, f"http://127.0.0.1:{port}", client.ask, setup)


PEERS: Mapping[str, Callable[[BenchVersions, str, Path], Peer]] = {
    make.__name__: make for make in (requery, raw, plain, server, transformers)
}
"""All peers by the name of the option ``--peer``."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One stretch of closed-loop load.

    Attributes:
        seconds: from the first request to the last answer.
        latencies: of the answered requests, in seconds.
        failures: messages of the others, in order.
    """

    seconds: float
    latencies: tuple[float, ...]
    failures: tuple[str, ...] = ()

    @property
    def per_s(self) -> float:
        """Answers per second."""
        return len(self.latencies) / self.seconds if self.seconds else 0.0


async def closed_loop(
    ask: Callable[[str], Awaitable[None]],
    queries: Iterable[str],
    callers: int,
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Turn:
    """Let ``callers`` ask all ``queries``; each asks its next one after an answer."""
    rest = iter(queries)
    latencies: list[float] = []
    failures: list[str] = []

    async def caller() -> None:
        for query in rest:
            begin = clock()
            try:
                await ask(query)
            except ServerFailed as error:
                failures.append(str(error))
            else:
                latencies.append(clock() - begin)

    begin = clock()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return Turn(clock() - begin, tuple(latencies), tuple(failures))
