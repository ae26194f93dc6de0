"""Clients of other languages, with their defaults, on the real server.

A test whose program is missing is skipped. ``REQUERY_REQUIRE_JDK=1`` and ``REQUERY_REQUIRE_NODE=1``
make those of Java and of Node fail instead.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from pathlib import Path
from typing import NoReturn

import pytest

from examples import generate
from tests.docs.services import document
from tests.support.engine import ScriptedEngine
from tests.support.http_server import listening

HERE = Path(__file__).parent
JAVA = HERE.parents[1] / "examples/java"
TYPESCRIPT = HERE.parents[1] / "examples/typescript"
QUERY = "celling light"
SEARCHED = [QUERY, "ceiling light", "lamp", QUERY]
# Read before the tests, which see no REQUERY_* variable of whoever runs them.
_REQUIRED = {
    program
    for name, programs in {"JDK": ("java", "javac"), "NODE": ("node", "npm", "tsc")}.items()
    if os.environ.get(f"REQUERY_REQUIRE_{name}") == "1"
    for program in programs
}


def _missing(program: str, where: str) -> NoReturn:
    (pytest.fail if program in _REQUIRED else pytest.skip)(f"there is no {program} {where}")


async def _run(*command: str, **variables: str) -> list[str]:
    """Lines that a program prints."""
    program = shutil.which(command[0])
    if program is None:
        _missing(command[0], "on this machine")
    process = await asyncio.create_subprocess_exec(
        program,
        *command[1:],
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | variables,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, out.decode() + err.decode()
    return out.decode().splitlines()


async def _texts(*command: str) -> list[str]:
    """What an example prints with a service, and with a port where nothing listens."""
    engine = ScriptedEngine({QUERY: (("ceiling light", 0.99), ("lamp", 0.95))})
    async with listening(engine=engine, body_timeout_s=60) as server:
        found = await _run(*command, REQUERY_URL=f"http://127.0.0.1:{server.port}")
    return found + await _run(*command, REQUERY_URL="http://127.0.0.1:1")


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


def test_the_records_of_the_java_example_are_of_the_current_document() -> None:
    assert generate.java(document()) == (JAVA / "Api.java").read_text(encoding="utf-8")


def test_a_union_has_no_record() -> None:
    with pytest.raises(ValueError, match="no plain Java type"):
        generate._java({"anyOf": [{"type": "string"}, {"$ref": "#/components/schemas/Pair"}]})


async def test_the_java_example_compiles_and_rewrites(tmp_path: Path) -> None:
    sources = [str(one) for one in JAVA.glob("*.java")]
    await _run("javac", "-Xlint:all", "-Werror", "-d", str(tmp_path), *sources)
    assert await _texts("java", "-cp", str(tmp_path), "Requery", QUERY) == SEARCHED


async def test_the_typescript_example_has_current_types_and_rewrites(tmp_path: Path) -> None:
    if not (TYPESCRIPT / "node_modules/.bin/tsc").exists():
        _missing("tsc", f"in {TYPESCRIPT}: 'npm ci' has not been run there")
    made = await asyncio.to_thread(generate.typescript, document(), TYPESCRIPT)
    assert made == (TYPESCRIPT / "api.ts").read_text(encoding="utf-8")
    tsc = str(TYPESCRIPT / "node_modules/.bin/tsc")
    await _run(tsc, "--project", str(TYPESCRIPT), "--outDir", str(tmp_path))
    (tmp_path / "package.json").write_text('{"type": "module"}')
    assert await _texts("node", str(tmp_path / "requery.js"), QUERY) == SEARCHED
