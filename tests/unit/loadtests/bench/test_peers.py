from __future__ import annotations

import asyncio
import math
import sys
from pathlib import Path
from typing import Any

import orjson
import pytest

from loadtests.bench.peers import Peer, TwoCalls, Work, closed_loop, one_call
from loadtests.client import HttpTransport
from loadtests.processes import Child, ServerFailed
from model_store.prompt import PromptFormat
from tests.support.model_versions import PROMPT, byte_tokenizer
from tests.support.redis_server import free_port

PROMPTS = PromptFormat(byte_tokenizer(), PROMPT)
LABELS = PROMPTS.labels


class Scripted(HttpTransport):
    """Answers as vLLM's server does: two completions, then their tags, the second one first."""

    def __init__(self) -> None:
        super().__init__("http://127.0.0.1:1")
        self.sent: list[dict[str, Any]] = []
        self.code = 200
        self.tags = [(1, 0.2), (0, 0.9)]

    async def fetch(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[int, Any, bytes]:
        assert (method, path) == ("POST", "/v1/completions")
        asked = orjson.loads(body or b"")
        self.sent.append(asked)
        return self.code, {}, orjson.dumps(self._drawn() if "n" in asked else self._tagged())

    def _drawn(self) -> dict[str, Any]:
        stopped = {"text": "ab", "token_ids": [*PROMPTS.encode("ab"), LABELS.relevant]}
        cut_off = {"text": "cd", "token_ids": PROMPTS.encode("cd")}
        return {
            "choices": [stopped, cut_off],
            "usage": {"prompt_tokens": 5, "completion_tokens": 7},
        }

    def _tagged(self) -> dict[str, Any]:
        choices = [
            {
                "index": index,
                "logprobs": {
                    "top_logprobs": [
                        {
                            "token_id:3": -0.1,
                            f"token_id:{LABELS.relevant}": math.log(p),
                            f"token_id:{LABELS.irrelevant}": math.log(1 - p),
                        }
                    ]
                },
            }
            for index, p in self.tags
        ]
        return {"choices": choices, "usage": {"prompt_tokens": 16, "completion_tokens": 2}}


def client() -> TwoCalls:
    stop_ids = [LABELS.relevant, LABELS.irrelevant]
    return TwoCalls(PROMPTS, stop_ids, temperatures=(0.01, 0.01), max_tokens=24)


async def test_candidates_are_drawn_in_one_call_and_tagged_in_another() -> None:
    transport = Scripted()
    rewrites, work = await client().rewrites(transport, "X  y")
    assert [text for text, _ in rewrites] == ["ab", "cd"]
    assert [relevance for _, relevance in rewrites] == pytest.approx([0.9, 0.2])
    drawn, tagged = transport.sent
    assert drawn["prompt"] == PROMPTS.rewrite_prompt("x y")
    assert (drawn["n"], drawn["max_tokens"], drawn["temperature"]) == (2, 24, 0.01)
    assert tagged["prompt"] == [
        PROMPTS.tag_prompt("x y", PROMPTS.encode("ab")),
        PROMPTS.tag_prompt("x y", PROMPTS.encode("cd")),
    ]
    assert tagged["logprob_token_ids"] == [LABELS.relevant, LABELS.irrelevant]
    assert tagged["max_tokens"] == 1
    assert work == Work(prompt=5 * 2 + 16, generated=7, tagged=2)


async def test_too_few_tags_and_errors_are_no_answer() -> None:
    transport = Scripted()
    transport.tags.pop()
    with pytest.raises(ServerFailed, match="1 tags"):
        await client().rewrites(transport, "x")
    transport.code = 400
    with pytest.raises(ServerFailed, match="answered 400"):
        await client().rewrites(transport, "x")


SERVER = """
import asyncio, json, sys
from loadtests.bare import response, serve
def answer(body):
    if b"die" in body:
        sys.exit("out of memory")
    if b"fail" in body:
        return response(b"too long", 500)
    return response(json.dumps({"work": {"prompt": 4, "generated": 20}}).encode())
asyncio.run(serve(int(sys.argv[1]), answer))
"""


def served(folder: Path, code: str = SERVER) -> Peer:
    port = free_port()
    child = Child([sys.executable, "-c", code, str(port)], folder / "log")
    return Peer("raw", child, f"http://127.0.0.1:{port}", one_call, {})


async def test_a_peer_is_asked_over_http_and_reports_its_work(tmp_path: Path) -> None:
    peer = served(tmp_path)
    try:
        await peer.start()
        await asyncio.gather(peer.ask("a"), peer.ask("b"))
        assert await peer.work() == Work(8, 40)
        with pytest.raises(ServerFailed, match="too long"):
            await peer.ask("fail")
        peer.pause()
        peer.resume()
        with pytest.raises(ServerFailed, match="no answer"):
            await peer.ask("die")
    finally:
        await peer.close()
    await peer.close()


async def test_a_peer_that_does_not_start_says_why(tmp_path: Path) -> None:
    peer = served(tmp_path, "raise SystemExit('no such model')")
    with pytest.raises(ServerFailed, match="no such model"):
        await peer.start()
    await peer.close()


async def test_each_query_is_asked_once_by_no_more_callers_than_said() -> None:
    asked: list[str] = []
    under_way = most = 0

    async def ask(query: str) -> None:
        nonlocal under_way, most
        asked.append(query)
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        if query == "7":
            raise ServerFailed("no")

    queries = [str(i) for i in range(20)]
    turn = await closed_loop(ask, queries, 3)
    assert sorted(asked) == sorted(queries)
    assert most == 3
    assert len(turn.latencies) == 19
    assert turn.failures == ("no",)


async def test_latency_counts_from_a_callers_own_question() -> None:
    now = 0.0

    async def ask(_query: str) -> None:
        nonlocal now
        now += 2.0

    turn = await closed_loop(ask, ["a", "b"], 1, clock=lambda: now)
    assert turn.latencies == (2.0, 2.0)
    assert turn.seconds == 4.0
    assert turn.per_s == 0.5
