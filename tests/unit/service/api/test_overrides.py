"""``/overrides`` in an application of its own, in a document store of this process."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.api.operator_schemas import OverrideInfo, OverridesResponse
from service.api.overrides import OverridesApi
from service.api.schemas import Problem
from service.overrides.live import Override
from tests.support.auth import admin_guard
from tests.support.calling import calling, mounted
from tests.support.overrides import BEFORE, LATER, World, block, pin, term

KEY = "0123456789abcdef"


class Api:
    """The routes, and the world behind them."""

    def __init__(self, world: World, client: httpx.AsyncClient) -> None:
        self.world, self.client = world, client

    async def call(self, method: str, path: str, body: object = None, **headers: str) -> Any:
        return await self.client.request(
            method,
            path,
            json=body,
            headers={k.replace("_", "-"): v for k, v in headers.items()},
        )

    async def add(self, content: dict[str, Any]) -> str:
        response = await self.call("POST", "/overrides", content)
        assert response.status_code == 201, response.text
        return str(response.json()["id"])

    async def listed(self) -> OverridesResponse:
        response = await self.call("GET", "/overrides")
        assert response.status_code == 200
        return OverridesResponse.model_validate_json(response.content)


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    file = tmp_path / "overrides.json"
    entry = block("pole", id="from-file", author="grace")
    file.write_text(json.dumps({"overrides": [entry]}))
    world = World(file=file)
    routes = OverridesApi(overrides=world.live, editor=world.editor, guard=admin_guard(KEY))
    app = mounted(routes.router(), log_requests=True)
    async with calling(app, key=KEY, x_requery_author="ada") as client:
        yield Api(world, client)


def problem(response: httpx.Response, status: int) -> Problem:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    return Problem.model_validate_json(response.content)


async def test_a_new_override_is_in_force_at_once_and_has_a_place(api: Api) -> None:
    response = await api.call("POST", "/overrides", pin("Stake", "steel stake", expires_at=LATER))
    assert response.status_code == 201
    made = OverrideInfo.model_validate_json(response.content)
    assert response.headers["location"] == f"/overrides/{made.id}"
    assert response.headers["etag"] == '"1"'
    assert (made.author, made.source, made.hits, made.expires_at) == ("admin/ada", "api", 0, LATER)
    assert api.world.live.of("stake") == Override("pinned", ("steel stake",))
    again = await api.call("GET", response.headers["location"])
    assert again.json() == response.json() | {"hits": 1}


async def test_the_list_shows_both_sources_with_hits_and_leaves_out_what_has_expired(
    api: Api,
) -> None:
    await api.add(term("gun"))
    await api.add(block("stake", expires_at=LATER))
    for query in ("pole", "pole", "stake"):
        api.world.live.of(query)
    shown = await api.listed()
    assert [(one.query or one.term, one.source, one.hits) for one in shown.overrides] == [
        ("gun", "api", 0), ("stake", "api", 1), ("pole", "file", 2),
    ]  # fmt: skip
    assert (shown.revision, shown.persistence, shown.file_problem) == (2, "process", None)
    api.world.time += 2 * 24 * 3600
    assert [one.term for one in (await api.listed()).overrides] == ["gun", None]


async def test_the_author_is_the_one_named_else_the_caller(api: Api) -> None:
    await api.add(block("a"))
    await api.add(block("b", author="bob"))
    authors = [one.author for one in (await api.listed()).overrides]
    assert authors == ["admin/ada", "bob", "grace"]


async def test_put_adds_and_replaces_and_delete_removes(api: Api) -> None:
    first = await api.call("PUT", "/overrides/mine", block("a"))
    second = await api.call("PUT", "/overrides/mine", pin("a", "b"))
    assert (first.status_code, second.status_code) == (201, 200)
    assert first.headers["location"] == "/overrides/mine"
    assert "location" not in second.headers
    gone = await api.call("DELETE", "/overrides/mine?reason=fine%20again")
    assert (gone.status_code, gone.content) == (204, b"")
    assert gone.headers["etag"] == '"3"'
    assert api.world.live.of("a") is None
    (note,) = await api.world.store.notes(1)
    assert (note["author"], note["reason"]) == ("admin/ada", "fine again")
    for method in ("GET", "DELETE"):
        problem(await api.call(method, "/overrides/mine"), 404)


async def test_the_whole_list_is_replaced_from_the_list_that_was_read(api: Api) -> None:
    await api.add(block("a"))
    tag = (await api.call("GET", "/overrides")).headers["etag"]
    body = {"overrides": [block("b"), term("gun", id="guns")], "reason": "spring clean"}
    problem(await api.call("PUT", "/overrides", body), 428)
    assert (
        "If-Match" in problem(await api.call("PUT", "/overrides", body, if_match="1"), 422).detail
    )
    response = await api.call("PUT", "/overrides", body, if_match=tag)
    shown = OverridesResponse.model_validate_json(response.content)
    assert [one.id for one in shown.overrides][1:] == ["guns", "from-file"]
    stale = await api.call("PUT", "/overrides", body, if_match=tag)
    assert '"2"' in problem(stale, 412).detail
    assert stale.headers["etag"] == '"2"'
    anyway = await api.call("PUT", "/overrides", {"overrides": []}, if_match="*")
    assert [one["source"] for one in anyway.json()["overrides"]] == ["file"]


async def test_a_stale_revision_is_refused_for_one_override_too(api: Api) -> None:
    await api.add(block("a", id="x"))
    problem(await api.call("PUT", "/overrides/x", block("b"), if_match='"0"'), 412)
    problem(await api.call("DELETE", "/overrides/x", if_match='"0"'), 412)
    assert (await api.call("DELETE", "/overrides/x", if_match='"1"')).status_code == 204


WRONG: dict[str, tuple[str, str, object, int, str]] = {
    "no reason": ("POST", "/overrides", {"kind": "block_query", "query": "a"}, 422, "reason"),
    "expired": ("POST", "/overrides", block("a", expires_at=BEFORE), 422, "expires_at"),
    "no zone": (
        "POST", "/overrides", block("a", expires_at="2030-01-01T00:00:00"), 422, "expires_at",
    ),
    "unknown field": ("POST", "/overrides", block("a", hits=3), 422, "hits"),
    "no object": ("POST", "/overrides", [], 422, "body"),
    "another id": ("PUT", "/overrides/x", block("a", id="y"), 422, "id"),
    "odd id": ("PUT", "/overrides/%20", block("a"), 422, "id"),
    "in the list": (
        "PUT", "/overrides", {"overrides": [block("a"), pin("b")]}, 422, "overrides.1.rewrites",
    ),
    "twice in the list": (
        "PUT", "/overrides", {"overrides": [block("a"), pin("A", "b")]}, 422, "overrides.1.query",
    ),
    "no list": ("PUT", "/overrides", {"overrides": {}}, 422, "overrides"),
    "the file's": ("DELETE", "/overrides/from-file", None, 409, ""),
    "about the same": ("POST", "/overrides", pin("A query", "b"), 409, ""),
}  # fmt: skip


@pytest.mark.parametrize(
    ("method", "path", "body", "code", "field"), WRONG.values(), ids=WRONG.keys()
)
async def test_what_is_wrong_is_named_and_changes_nothing(
    api: Api, method: str, path: str, body: object, code: int, field: str
) -> None:
    await api.add(block("a query"))
    found = problem(await api.call(method, path, body, if_match="*"), code)
    assert [error.field for error in found.errors or []] == ([field] if field else [])
    assert [one.query for one in (await api.listed()).overrides] == ["a query", "pole"]
