"""Services that started without their Redis become one once it is there."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.support.redis_server import RedisServer, free_port
from tests.support.scripted_process import ScriptedProcess
from tests.support.waiting import wait_until

pytestmark = pytest.mark.integration


def test_everything_that_is_shared_is_shared_once_redis_is_there(tmp_path: Path) -> None:
    server = RedisServer(tmp_path, port=free_port())
    with (
        ScriptedProcess(redis_url=server.url, redis_read_budget_ms=2000) as a,
        ScriptedProcess(redis_url=server.url, redis_read_budget_ms=2000) as b,
        httpx.Client(base_url=a.url, timeout=30) as here,
        httpx.Client(base_url=b.url, timeout=30) as there,
    ):
        # Without it both serve, each for itself, and what would be shared cannot be changed.
        for client in (here, there):
            assert client.get("/readyz").status_code == 200
            assert client.post("/rewrite", json={"query": "alone"}).json()["source"] == "engine"
        block = {"kind": "block_query", "query": "steel stake", "reason": "for the test"}
        assert here.post("/overrides", json=block).status_code == 503

        server.start()
        try:
            # Answers.
            asked = iter(f"stake {n}".translate(LETTERS) for n in range(100_000))

            def is_shared() -> bool:
                query = next(asked)
                here.post("/rewrite", json={"query": query})
                answer = there.post("/rewrite", json={"query": query}).json()
                return bool(answer["source"] == "redis")

            wait_until(is_shared)
            # What operators decide.
            wait_until(lambda: here.post("/overrides", json=block).is_success)
            wait_until(
                lambda: (
                    there.post("/rewrite", json={"query": "steel stake"}).json()["source"]
                    == "override"
                )
            )
            plan = {"default": "test-1", "weights": {}, "salt": "new"}
            wait_until(
                lambda: here.put("/routing", json=plan, headers={"if-match": "*"}).is_success
            )
            wait_until(lambda: there.get("/routing").json()["salt"] == "new")
        finally:
            server.stop()


LETTERS = str.maketrans("0123456789", "abcdefghij")
