"""Names of versions over HTTP: whatever is asked for, nothing but the store's own is looked at."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from asgi_lifespan import LifespanManager

from model_store.store import FolderSource, Store
from service.app.components import RuntimeDependencies
from service.app.factory import create_app
from service.config.settings import Settings
from service.versions.from_store import version_finder
from service.versions.version import ModelVersion
from tests.support.model_versions import write_full_version
from tests.support.versions import Engines, make_manifest

NAMES = [
    "..", "../outside", "../../etc/passwd", "/etc/passwd", ".", "inside/../../outside", "inside/",
    "inside\x00", "\x00", "inside\n", "INSIDE", "ｉｎｓｉｄｅ", "in\u200bside", "\u202eedisni",
    "\u0131nside", "\ufeffinside", "~", "$(id)", "inside;id", "con\\inside", "a" * 5000, "%",
    "%2e%2e%2foutside", "\x1b[2J", "' or 1=1 --", "linked",
]  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A source with the version "inside", a link to one outside of it, and one beside it."""
    write_full_version(tmp_path / "source" / "inside")
    write_full_version(tmp_path / "outside")
    (tmp_path / "source" / "linked").symlink_to(tmp_path / "outside")
    return tmp_path / "source"


@pytest.fixture
async def client(root: Path, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    settings = Settings(default_version="test-1", warm_queries=";", cache_dir=tmp_path / "cache")
    store = Store([FolderSource(root)], settings.cache_dir)
    app = create_app(
        settings,
        RuntimeDependencies(
            versions=[ModelVersion(make_manifest())],
            engines=Engines(),
            find=version_finder(store, settings),
        ),
    )
    transport = httpx.ASGITransport(app=app)
    async with (
        LifespanManager(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        yield client


async def test_a_version_that_came_into_the_store_is_found(client: httpx.AsyncClient) -> None:
    response = await client.post("/versions/inside/load")
    assert response.status_code in (200, 202)


def refused(response: httpx.Response, tmp_path: Path) -> None:
    assert 400 <= response.status_code < 600
    assert response.headers["content-type"] == "application/problem+json"
    detail: str = response.json()["detail"]
    assert detail.isprintable()
    assert len(detail) < 1000
    assert str(tmp_path) not in detail


@pytest.mark.parametrize("name", NAMES, ids=ascii)
async def test_any_other_name_is_refused_in_a_line(
    client: httpx.AsyncClient, tmp_path: Path, name: str
) -> None:
    encoded = quote(name, safe="")
    for path in (f"/versions/{encoded}/load", f"/versions/{encoded}/unload"):
        response = await client.post(path)
        if path.endswith("unload") and response.status_code == 204:
            continue  # it is not known here
        refused(response, tmp_path)
    pinned = await client.post("/rewrite", json={"query": "a", "model_version": name[:64]})
    assert pinned.status_code == 404
    refused(pinned, tmp_path)
    killed = await client.put("/routing/kill", json={"version": name[:64], "reason": "x"})
    refused(killed, tmp_path)
    listed = (await client.get("/versions")).json()["versions"]
    assert [version["name"] for version in listed] == ["test-1"]
