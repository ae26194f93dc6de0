from __future__ import annotations

import math
from typing import Any

import orjson
import pytest

from loadtests.bench.openai_peer import TwoCalls
from loadtests.bench.peer import PeerFailed, Work
from loadtests.client import HttpTransport
from loadtests.exchange import Failure, NoReply
from model_store.prompt import PromptFormat
from tests.support.model_versions import PROMPT, byte_tokenizer

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


def client(transport: HttpTransport, temperatures: tuple[float, ...] = (0.01, 0.01)) -> TwoCalls:
    stop_ids = [LABELS.relevant, LABELS.irrelevant]
    return TwoCalls(transport, PROMPTS, stop_ids, temperatures=temperatures, max_tokens=24)


async def test_candidates_are_drawn_in_one_call_and_tagged_in_another() -> None:
    transport = Scripted()
    rewrites, work = await client(transport).rewrites("X  y")
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


async def test_too_few_tags_are_no_answer() -> None:
    transport = Scripted()
    transport.tags.pop()
    with pytest.raises(PeerFailed, match="1 tags"):
        await client(transport).rewrites("x")


async def test_an_error_of_the_server_is_told() -> None:
    transport = Scripted()
    transport.code = 400
    with pytest.raises(PeerFailed, match="answered 400"):
        await client(transport).rewrites("x")


async def test_no_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def reset(*_: object) -> None:
        raise NoReply(Failure.RESET)

    transport = Scripted()
    monkeypatch.setattr(transport, "fetch", reset)
    with pytest.raises(PeerFailed, match="reset"):
        await client(transport).rewrites("x")


def test_one_call_has_one_temperature() -> None:
    with pytest.raises(ValueError, match="one temperature"):
        client(Scripted(), (0.0, 0.5))
