"""The least that a FastAPI route can do: read the same body, answer with the same model.

Run as ``python -m loadtests.bench.bare_route <port>``. Its throughput is what any service with this
contract could reach on this machine with this server (uvloop, httptools); the answer is fixed.

``/fixed`` is a model provider for LiteLLM's proxy: a chat completion that is always the same, and
how often it was asked for (``GET /fixed/asked``), so that hits can be told from misses.
"""

from __future__ import annotations

import sys
from typing import Any

import uvicorn
from fastapi import FastAPI

from service.api.schemas import Rewrite, RewriteRequest, RewriteResponse

_REWRITES = (
    ("steel stake", 0.9978),
    ("galvanized steel stake", 0.9412),
    ("metal garden stake", 0.8871),
    ("steel grade stakes", 0.8164),
)


def create_app() -> FastAPI:
    """The application."""
    app = FastAPI()
    asked = 0

    @app.post("/rewrite")
    async def rewrite(body: RewriteRequest) -> RewriteResponse:
        return RewriteResponse(
            query=body.query,
            rewrites=[Rewrite(text=text, relevance=value) for text, value in _REWRITES],
            status="ok",
            source="memory",
            model_version="bench",
            request_id="0123456789abcdef0123456789abcdef",
        )

    @app.post("/fixed/chat/completions")
    async def completion(body: dict[str, Any]) -> dict[str, Any]:
        nonlocal asked
        asked += 1
        text = "\n".join(f"{text}\t{value}" for text, value in _REWRITES)
        choice = {"index": 0, "finish_reason": "stop", "message": _message(text)}
        return {
            "id": "chatcmpl-0",
            "object": "chat.completion",
            "created": 0,
            "model": body.get("model", "bench"),
            "choices": [choice],
            "usage": {"prompt_tokens": 8, "completion_tokens": 24, "total_tokens": 32},
        }

    @app.get("/fixed/asked")
    async def how_often() -> dict[str, int]:
        return {"asked": asked}

    return app


def _message(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def main(port: int) -> None:
    """Serve until told to stop; the same loop and parser as the service's."""
    uvicorn.run(
        create_app(),
        host="127.0.0.1",
        port=port,
        loop="uvloop",
        http="httptools",
        ws="none",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
    )


if __name__ == "__main__":
    main(int(sys.argv[1]))
