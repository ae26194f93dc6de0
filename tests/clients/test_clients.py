"""Clients of other languages, with their defaults, on the real server."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

import pytest

from tests.support.http_server import listening

HERE = Path(__file__).parent


async def _run(*command: str) -> list[str]:
    """Lines that a program prints."""
    program = shutil.which(command[0])
    if program is None:
        pytest.skip(f"there is no {command[0]} on this machine")
    process = await asyncio.create_subprocess_exec(
        program,
        *command[1:],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode().splitlines()


async def test_the_jdk_client_which_offers_http2() -> None:
    async with listening(body_timeout_s=60) as server:
        lines = await _run("java", str(HERE / "Client.java"), f"http://127.0.0.1:{server.port}")
    answers = [line.split(" ", 2) for line in lines]
    assert [answer[:2] for answer in answers] == [["200", "HTTP_1_1"]] * 2
    assert [json.loads(answer[2])["query"] for answer in answers] == ["a stake"] * 2


async def test_curl_which_is_told_to_offer_http2() -> None:
    async with listening(body_timeout_s=60) as server:
        lines = await _run(
            "curl", "--silent", "--show-error", "--http2", "--noproxy", "*",
            "--json", '{"query": "a stake"}', f"http://127.0.0.1:{server.port}/rewrite",
        )  # fmt: skip
    assert json.loads(lines[0])["query"] == "a stake"


async def test_fetch_of_node() -> None:
    script = (
        "fetch(process.argv[1], {method: 'POST', headers: {'content-type': 'application/json'},"
        " body: JSON.stringify({query: 'a stake'})}).then(a => a.text()).then(console.log)"
    )
    async with listening(body_timeout_s=60) as server:
        lines = await _run("node", "-e", script, f"http://127.0.0.1:{server.port}/rewrite")
    assert json.loads(lines[0])["query"] == "a stake"
