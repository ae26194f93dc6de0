"""The whole experiment, over HTTP, against the real server on scripted engines."""

from __future__ import annotations

import asyncio
import json
import socket
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from service.app.components import RuntimeDependencies
from service.app.factory import create_app
from service.config.settings import Settings
from service.routing.document import Routing
from service.security.api_keys import entry, new_key
from service.versions.version import ModelVersion
from tests.support.engine import Script, ScriptedEngine
from tests.support.http_server import Listening, listening
from tests.support.versions import Engines, make_manifest
from tests.unit.training.worlds import make_tables
from training import cli
from training.ab.backend import Backend
from training.ab.errors import ExperimentError
from training.ab.experiment import shares_of
from training.ab.routing import Plan, plan_of, read_routing
from training.ab.run import CONTROL, Asked, Service, ask_all, simulate
from training.ab.shoppers import Shopper, draw_shoppers
from training.ab.user_model import UserModel
from training.data.folds import HELD_OUT, fold_of
from training.data.pairs import World
from training.data.schema import Tables

PATIENCE_MS = 60_000
"""Longer than any answer takes, however busy the machine is."""
WORDS = ["".join(parts) for parts in product(("ka", "ro", "mi", "tu", "vo", "ze"), repeat=3)]
NEEDS = [word for word in WORDS if fold_of(word) == HELD_OUT]
SHOPPERS = 240


def tables() -> Tables:
    """For each need a good product that only its other name finds, and a bad one."""
    titles = {f"good-{w}": f"qu{w}" for w in NEEDS} | {f"bad-{w}": f"{w} tool" for w in NEEDS}
    titles |= {f"junk-{i}": "junk" for i in range(5)}
    return make_tables(titles, {w: {f"good-{w}": 3.0, f"bad-{w}": 1.0} for w in NEEDS})


@asynccontextmanager
async def two_versions() -> AsyncIterator[Listening]:
    """A version that knows the other names, and one that knows nothing, at equal weights."""
    knows: dict[str, Script] = {w: ((f"qu{w}", 0.98),) for w in NEEDS}
    good = ScriptedEngine(knows, default=())
    junk = ScriptedEngine(default=(("junk", 0.98),))

    async def make(settings: Settings) -> FastAPI:
        versions = [ModelVersion(make_manifest(name)) for name in ("good-1", "junk-1")]
        engines = Engines(good_1=good, junk_1=junk)
        return create_app(settings, RuntimeDependencies(versions=versions, engines=engines))

    async with listening(make=make, default_version="good-1", engine_stall_s=3600.0) as service:
        plan = {"default": "good-1", "weights": {"good-1": 0.5, "junk-1": 0.5}, "salt": "test"}
        url = f"http://127.0.0.1:{service.port}"
        async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
            loaded = await client.post("/versions/junk-1/load?wait=true")
            assert loaded.status_code == 200, loaded.text
            changed = await client.put("/routing", json=plan, headers={"if-match": '"0"'})
            assert changed.status_code == 200, changed.text
        yield service


async def test_a_clearly_better_version_wins(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables().save(tmp_path / "data")
    async with two_versions() as service:
        await asyncio.to_thread(
            cli.ab,
            url=f"http://127.0.0.1:{service.port}",
            shoppers=SHOPPERS,
            source="tables",
            data=tmp_path / "data",
            out=tmp_path / "report",
            deadline_ms=PATIENCE_MS,
        )
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    visits = [
        json.loads(line) for line in (tmp_path / "report" / "visits.jsonl").read_text().splitlines()
    ]
    _adds_up(report, visits)
    _is_sticky(report, visits)

    tests = {(t["metric"], t["arm"], t["against"]): t for t in report["analysis"]["all"]["tests"]}
    for metric in ("ucvr", "uctr"):
        won = tests[metric, "good-1", CONTROL]
        assert won["p_holm"] < 0.01
        assert won["low"] > 0
        assert tests[metric, "junk-1", "good-1"]["high"] < 0
    gains = report["analysis"]["all"]["expected_gain"]
    assert gains["good-1"]["ucvr"][1] > 0
    # Junk pushes nothing out of a page, sells nothing, and is clicked now and then.
    assert gains["junk-1"]["ucvr"] == [0, 0, 0]
    assert report["analysis"]["all"]["arms"]["good-1"]["coverage"] == 1
    assert report["analysis"]["all"]["arms"][CONTROL]["coverage"] == 0
    assert not report["routing_changed"]

    shown = capsys.readouterr().out
    text = (tmp_path / "report" / "report.md").read_text()
    assert text in shown
    _says_simulated(text)
    for name in ("rates", "differences", "latency"):
        assert (tmp_path / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def _adds_up(report: dict[str, Any], visits: list[dict[str, Any]]) -> None:
    """The figures are those of the visits, and every visitor is in one arm."""
    arms = report["analysis"]["all"]["arms"]
    assert list(arms) == [CONTROL, "good-1", "junk-1"]
    assert sum(a["visitors"] for a in arms.values()) == len(visits) == SHOPPERS
    assert len({v["unit"] for v in visits}) == SHOPPERS
    for arm, figures in arms.items():
        mine = [v for v in visits if v["arm"] == arm]
        searches = [s for v in mine for s in v["searches"]]
        bought = [any(s["done"]["bought"] for s in v["searches"]) for v in mine]
        clicked = [any(s["done"]["clicks"] for s in v["searches"]) for v in mine]
        assert figures["searches"] == len(searches)
        assert figures["purchases"] == sum(bool(s["done"]["bought"]) for s in searches)
        assert (figures["ucvr"]["count"], figures["uctr"]["count"]) == (sum(bought), sum(clicked))
        assert sum(figures["statuses"].values()) == (0 if arm == CONTROL else len(searches))


def _is_sticky(report: dict[str, Any], visits: list[dict[str, Any]]) -> None:
    """Each visitor was answered by the arm's version, and the arms have their shares."""
    for visit in visits:
        answered = {s["asked"] and s["asked"]["version"] for s in visit["searches"]}
        assert answered == {None if visit["arm"] == CONTROL else visit["arm"]}
    analysis = report["analysis"]
    assert analysis["visitors_by_another_version"] == analysis["visitors_unanswered"] == 0
    assert not analysis["sample_ratio"]["mismatch"]
    assert {a: one["expected"] for a, one in analysis["sample_ratio"]["arms"].items()} == {
        CONTROL: SHOPPERS / 2, "good-1": SHOPPERS / 4, "junk-1": SHOPPERS / 4
    }  # fmt: skip


def _says_simulated(text: str) -> None:
    """Every heading, and the caption of every table."""
    paragraphs = text.split("\n\n")
    tables = [i for i, paragraph in enumerate(paragraphs) if paragraph.startswith("|")]
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert len(tables) == 6
    assert len(headings) == 4
    for line in [*headings, *(paragraphs[i - 1] for i in tables)]:
        assert "simulated" in line.lower()


def routed(**weights: float) -> Plan:
    names = {name.replace("_", "-"): share for name, share in weights.items()}
    return plan_of({"default": "a-1", "weights": names, "salt": "s", "revision": 3})


def test_clicks_follow_from_the_seed_and_the_answers() -> None:
    world = World(tables())
    backend, plan = Backend(world), routed(a_1=0.5, b_1=0.5)
    shoppers = draw_shoppers(dict.fromkeys(world.grades, 1), 60, 7)
    answers = {
        s.unit: tuple(Asked("a-1", "ok", (f"qu{q}",), 0.1) for q in s.queries)
        for s in shoppers[:30]
    }
    slower = {
        unit: tuple(Asked(a.version, a.status, a.rewrites, 9.0) for a in asked)
        for unit, asked in answers.items()
    }
    runs = [
        simulate(shoppers, given, plan, Backend(world), UserModel(), seed)
        for given, seed in ((answers, 7), (answers, 7), (slower, 7), (answers, 8))
    ]
    done = [[[s.done for s in visit.searches] for visit in visits] for visits in runs]
    assert runs[0] == runs[1]
    assert done[0] == done[2]
    assert done[0] != done[3]
    assert [v.arm for v in runs[0][30:]] == [CONTROL] * 30
    assert {v.arm for v in runs[0][:30]} == {"a-1", "b-1"}
    first = runs[0][0].searches[0]
    assert first.expected.purchase > first.plain.purchase
    assert backend.page(first.query) == world.plain(first.query)


def test_the_arms_are_the_services_own() -> None:
    plan = routed(a_1=0.75, b_1=0.25, c_1=0.0)
    assert plan.shares == {"a-1": 0.75, "b-1": 0.25}
    counts = Counter(plan.arm(f"u{i}") for i in range(2000))
    assert counts["b-1"] / 2000 == pytest.approx(0.25, abs=0.05)
    assert routed().shares == {"a-1": 1.0}
    assert routed().arm("u1") == "a-1"


def test_shares_of_all_shoppers() -> None:
    plan = routed(a_1=0.75, b_1=0.25)
    assert shares_of(plan, 0.5) == {CONTROL: 0.5, "a-1": 0.375, "b-1": 0.125}
    assert shares_of(plan, 0.0) == {"a-1": 0.75, "b-1": 0.25}
    with pytest.raises(ExperimentError, match="nothing to compare with a-1"):
        shares_of(routed(), 0.0)
    odd = Plan(Routing(default=CONTROL, weights={}, salt="s"), 1, {CONTROL: 1.0})
    with pytest.raises(ExperimentError, match="as the arm without rewrites is"):
        shares_of(odd, 0.5)


@pytest.mark.parametrize("switch", ["kill", "local_kill"])
def test_a_service_whose_rewrites_are_stopped_has_no_arms(switch: str) -> None:
    body = {"default": "a-1", "weights": {}, "salt": "s", switch: {"version": None, "reason": "x"}}
    with pytest.raises(ExperimentError, match="kill switch"):
        plan_of(body)


async def test_no_service_is_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ExperimentError, match="make serve"):
        await read_routing(f"http://127.0.0.1:{port}", None)


async def test_something_else_is_there() -> None:
    async def page(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 4\r\n\r\npage")
        writer.close()

    async with await asyncio.start_server(page, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ExperimentError, match="is --url right"):
            await read_routing(f"http://127.0.0.1:{port}", None)


async def test_a_key_is_needed(tmp_path: Path) -> None:
    keys, key, other = tmp_path / "keys.yaml", new_key(), new_key()
    keys.write_text(entry("shop", key, ["rewrite"]) + entry("prometheus", other, ["metrics"]))
    async with listening(api_keys_file=keys) as service:
        url = f"http://127.0.0.1:{service.port}"
        with pytest.raises(ExperimentError, match="REQUERY_KEY"):
            await read_routing(url, None)
        assert (await read_routing(url, key)).shares == {"test-1": 1.0}
        shopper, world = Shopper("u", ("rug",)), World(tables())
        with pytest.raises(ExperimentError, match="rejects the searches: 403 forbidden"):
            await ask_all(Service(url, other, PATIENCE_MS), [shopper], world)


async def test_a_service_that_answers_nothing_is_no_experiment() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(ExperimentError, match="answered none of the searches"):
        await ask_all(
            Service(f"http://127.0.0.1:{port}"), [Shopper("u", ("rug",))], World(tables())
        )
