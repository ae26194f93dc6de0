"""`requery serve` as packaged, over HTTP: what README shows, a lost engine core, and the end.

``REQUERY_REFRESH_README=1`` writes the answer into README.md instead of comparing it:

    REQUERY_REFRESH_README=1 .venv/bin/pytest tests/integration/test_service.py -k readme
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import re
import shlex
import signal
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from model_store.materialise import materialise
from model_store.store import open_store
from service.config.settings import Settings
from tests.chaos.scrape import scrape, total
from tests.contract import corpus
from tests.docs.blocks import ROOT, blocks
from tests.support.scripted_process import ServiceProcess
from tests.support.waiting import until, wait_until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(1500),  # three starts of an engine, on a machine that may be busy
]

STALL_S = 10.0
"""Longer than any step of a healthy engine on a busy machine."""
DEADLINE_MS = 20_000
"""In which even a slow machine generates."""
BOUND_S = 120.0
"""A request that takes this long hangs; how long they really take is measured elsewhere."""
TYPOS = ["steele stake", "cieling fan", "lawn mower bateries", "vynil flooring"]
KNOWN = TYPOS[0]
CALLERS = 2
ADJECTIVES = ("galvanised", "wodden", "stainles", "black", "outdor", "folding", "white", "solar")
NOUNS = ("lader", "cieling fan", "door hinge", "garden hose", "flor lamp", "shelv", "faucett")
PLACES = ("", "for kitchen", "for garage", "with hooks", "large", "small", "set", "replacement")
REASONS = {signal.SIGKILL: "died", signal.SIGSTOP: "hung"}


# Read before the tests, which see no REQUERY_* variable of whoever runs them.
_REFRESH = os.environ.get("REQUERY_REFRESH_README") == "1"
_UNSURE = re.compile(r"gives no\s+rewrite where it is unsure \(([^)]*)\)")


@pytest.fixture(scope="module")
def process() -> Iterator[ServiceProcess]:
    """One service for the tests of this module; its model is materialised before."""
    materialise(open_store().get(Settings().default_version))
    with ServiceProcess(
        engine_stall_s=STALL_S,
        admission_target_ms=DEADLINE_MS,
    ) as started:
        yield started


@pytest.fixture(scope="module")
def http(process: ServiceProcess) -> Iterator[httpx.Client]:
    with process.client() as client:
        yield client


def cores(process: ServiceProcess) -> list[int]:
    """Process ids of its engine cores."""
    return [p.pid for p in process.descendants() if p.name().startswith("VLLM::Engine")]


@dataclass
class Load:
    """Shoppers who ask for something new each time, and one who asks for the same again."""

    http: httpx.AsyncClient
    outcomes: Counter[str] = field(default_factory=Counter)
    known: Counter[str] = field(default_factory=Counter)

    async def ask(self, query: str, outcomes: Counter[str]) -> None:
        """One request, which must not hang nor fail in any way that we have not promised."""
        body = {"query": query, "deadline_ms": DEADLINE_MS}
        async with asyncio.timeout(BOUND_S):
            response = await self.http.post("/rewrite", json=body)
        if response.status_code == 503:
            assert int(response.headers["retry-after"]) >= 1
            outcomes["503"] += 1
            return
        assert response.status_code == 200, response.text
        answer = response.json()
        assert answer["status"] in {"ok", "none", "partial", "timeout", "fallback"}
        outcomes[f"{answer['status']} from {answer['source']}"] += 1

    async def ask_new(self, queries: Iterator[str]) -> None:
        while True:
            await self.ask(next(queries), self.outcomes)
            await asyncio.sleep(0.05)

    async def ask_known(self) -> None:
        while True:
            await self.ask(KNOWN, self.known)
            await asyncio.sleep(0.1)

    async def until_more(self, outcome: str, n: int = 1) -> None:
        """Wait for ``n`` more of an outcome."""
        goal = self.outcomes[outcome] + n
        await until(lambda: self.outcomes[outcome] >= goal)


async def until_ready(http: httpx.AsyncClient, *, ready: bool = True) -> None:
    """Wait until the service says that it is ready, or that it is not."""

    async def says_so() -> bool:
        try:
            code = (await http.get("/readyz")).status_code
        except httpx.TransportError:
            return False
        assert code in (200, 503)
        return (code == 200) == ready

    await until(says_so, poll_s=0.1)


@asynccontextmanager
async def shopping(http: httpx.AsyncClient, words: Iterator[str]) -> AsyncIterator[Load]:
    """Load for as long as the block lasts; the first request that goes wrong ends both."""
    load = Load(http)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(load.ask_new(words)) for _ in range(CALLERS)]
        tasks.append(group.create_task(load.ask_known()))
        yield load
        for task in tasks:
            task.cancel()


@pytest.fixture(scope="module")
def words() -> Iterator[str]:
    """Queries that nobody has asked for yet, more of them than any test asks for."""
    every = itertools.product(range(1, 1000), PLACES, NOUNS, ADJECTIVES)
    return (f"{adjective} {noun} {place} {n} pack" for n, place, noun, adjective in every)


def test_readme_shows_what_a_fresh_start_answers(http: httpx.Client) -> None:
    (block,) = (one for one in blocks("README.md") if "held by" in one.notes)
    assert ROOT / block.notes["held by"] == Path(__file__)
    assert block.answer
    words = shlex.split(block.text)
    body = json.loads(words[words.index("-d") + 1]) | {"deadline_ms": 30_000}
    answer = http.post("/rewrite", json=body).json()
    shown = json.loads(block.answer.text)
    given = {**answer, "request_id": shown["request_id"]}
    if _REFRESH:
        _refresh(block.answer.text, given)
        return
    hint = "README.md is not as the default answers; REQUERY_REFRESH_README=1 corrects it"
    # The relevance by another CPU's kernels is a little different.
    for one in shown["rewrites"]:
        one["relevance"] = pytest.approx(one["relevance"], abs=0.05)
    assert given == shown, hint


def _refresh(old: str, answer: dict[str, Any]) -> None:
    line = json.dumps(answer, separators=(",", ":"), ensure_ascii=False)
    indented = old.strip().replace("\n", "\n    ")
    page = ROOT / "README.md"
    text = page.read_text(encoding="utf-8")
    assert indented in text
    page.write_text(text.replace(indented, line.replace(',"status"', ',\n     "status"')))


def test_queries_that_readme_says_get_no_rewrite(http: httpx.Client) -> None:
    sentence = _UNSURE.search((ROOT / "README.md").read_text(encoding="utf-8"))
    assert sentence, "README.md no longer names queries without rewrites: remove this test"
    named = re.findall(r'"([^"]+)"', sentence[1])
    bodies = [{"query": query, "deadline_ms": 30_000} for query in named]
    answers = [http.post("/rewrite", json=body).json() for body in bodies]
    assert {one["query"]: one["rewrites"] for one in answers} == {one: [] for one in named}


def test_rewrites_with_relevance(http: httpx.Client) -> None:
    rewrites = []
    for query in TYPOS:
        response = http.post("/rewrite", json={"query": query, "deadline_ms": 30_000})
        assert response.status_code == 200
        answer = response.json()
        assert answer["query"] == query
        assert answer["source"] == "engine"
        assert answer["status"] in ("ok", "none")
        assert (answer["status"] == "ok") == bool(answer["rewrites"])
        for rewrite in answer["rewrites"]:
            assert rewrite["text"] not in ("", query)
            assert 0.5 <= rewrite["relevance"] <= 1.0
        rewrites += answer["rewrites"]
    assert rewrites


def test_relevance_of_given_pairs(http: httpx.Client) -> None:
    pairs = [
        {"query": "steele stake", "rewrite": "steel stake"},
        {"query": "steele stake", "rewrite": "bathroom vanity mirror"},
    ]
    response = http.post("/relevance", json={"pairs": pairs})
    assert response.status_code == 200
    same, other = response.json()["relevance"]
    assert 0.0 <= other < same <= 1.0


def test_metrics_are_ours_alone(http: httpx.Client) -> None:
    text = http.get("/metrics").text
    samples = dict(
        line.rsplit(" ", 1) for line in text.splitlines() if line and not line.startswith("#")
    )
    assert all(name.startswith("requery_") for name in samples)
    assert any(name.startswith("requery_engine_up{") and v == "1.0" for name, v in samples.items())
    tokens = [float(v) for name, v in samples.items() if name.startswith("requery_tokens_total")]
    assert len(tokens) == 2
    assert all(count > 0 for count in tokens)


@pytest.mark.parametrize(("path", "offset"), [("/rewrite", 0), ("/relevance", 1)])
def test_hostile_input_gets_an_answer_or_a_clear_refusal(
    http: httpx.Client, path: str, offset: int
) -> None:
    """A part of what tests/contract sends in process, for the real server and tokenizer."""
    documents: list[object] = [
        ({"query": text} if path == "/rewrite" else {"pairs": [{"query": "a", "rewrite": text}]})
        | {"deadline_ms": DEADLINE_MS}
        for text in list(corpus.STRINGS.values())[offset::2]
    ]
    bodies = [json.dumps(document).encode() for document in documents]
    bodies += [body for _, body in list(corpus.bodies(bodies[-1]))[offset::2]]
    # What earlier requests have given up, the engine may still finish.
    wait_until(lambda: total(http, "requery_generations_in_flight") == 0)
    for body in bodies:
        response = http.post(path, content=body, headers={"content-type": "application/json"})
        assert response.status_code == 200 or 400 <= response.status_code < 500, body[:80]
        if response.status_code != 200:
            assert response.headers["content-type"] == "application/problem+json"
            problem = response.json()
            assert problem["status"] == response.status_code
            assert problem["detail"]
    assert http.get("/readyz").status_code == 200


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
async def test_a_core_that_is_lost_under_load_hangs_nobody_and_is_replaced(
    process: ServiceProcess, words: Iterator[str], number: signal.Signals
) -> None:
    async with httpx.AsyncClient(base_url=process.url, timeout=BOUND_S) as http:
        await until_ready(http)
        response = await http.post("/rewrite", json={"query": KNOWN, "deadline_ms": 30_000})
        assert response.json()["status"] == "ok"
        (lost,) = cores(process)
        async with shopping(http, words) as load:
            await load.until_more("ok from engine", 5)
            os.kill(lost, number)
            await until_ready(http, ready=False)
            # The cache does without the engine, and everybody else is told to.
            known = load.known["ok from memory"]
            await load.until_more("fallback from none", 10)
            await until(lambda: load.known["ok from memory"] > known)
            await until_ready(http)
            await load.until_more("ok from engine", 5)
        assert set(load.known) == {"ok from memory"}
        (core,) = cores(process)
        assert core != lost
        assert lost not in [one.pid for one in process.descendants()]
        restarts = await scrape(http, "requery_engine_restarts_total", "reason")
        assert sum(n for (why,), n in restarts.items() if why == REASONS[number]) >= 1
        # What was lost with the engine holds no place.
        await until(lambda: is_idle(http), poll_s=0.1)


async def is_idle(http: httpx.AsyncClient) -> bool:
    """Whether no generation is under way, and no candidate has a place."""
    flights = await scrape(http, "requery_generations_in_flight")
    places = await scrape(http, "requery_admission_in_use")
    return not sum(flights.values()) + sum(places.values())


def test_sigterm_ends_in_order_and_leaves_no_process_behind(process: ServiceProcess) -> None:
    below = process.descendants()
    assert below, "the engine core is a process of its own"
    process.tell(signal.SIGTERM)
    assert process.wait() == 0
    # Python's own resource tracker leaves just after its parent.
    wait_until(lambda: not any(map(lives, below)))


def lives(process: psutil.Process) -> bool:
    """Whether it exists and is more than an entry that nobody has collected."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
