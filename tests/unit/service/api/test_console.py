"""The console's files: what is served, with which headers, and that it is whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from service.api.console import FOLDER
from tests.support.service import Serve, Service

FILES = sorted(path for path in FOLDER.rglob("*") if path.is_file())


async def test_the_page_is_at_the_root_under_a_strict_policy(service: Service) -> None:
    response = await service.client.get("/")
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(
        part.strip().partition(" ")[::2]
        for part in response.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    for kind in ("script-src", "style-src", "connect-src", "img-src"):
        assert policy[kind] == "'self'"
    for kind in ("base-uri", "form-action", "frame-ancestors"):
        assert policy[kind] == "'none'"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "same-origin"


async def test_every_file_is_served_with_its_type(service: Service) -> None:
    types = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
    for path in FILES:
        if path.name == "index.html":
            continue
        response = await service.client.get(f"/console/{path.relative_to(FOLDER).as_posix()}")
        assert response.content == path.read_bytes()
        assert response.headers["content-type"].partition(";")[0] == types[path.suffix]
        assert "default-src 'none'" in response.headers["content-security-policy"]


async def test_what_a_browser_has_is_not_sent_again(service: Service) -> None:
    for path in ("/", "/console/js/main.js"):
        first = await service.client.get(path)
        assert first.headers["cache-control"] == "no-cache"
        tag = first.headers["etag"]
        for given in (tag, f'W/{tag}, "x"'):
            again = await service.client.get(path, headers={"if-none-match": given})
            assert (again.status_code, again.content) == (304, b"")
            assert again.headers["etag"] == tag
        other = await service.client.get(path, headers={"if-none-match": '"x"'})
        assert other.status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "index.html",
        "",
        "js",
        "js/",
        "../settings.py",
        "..%2fsettings.py",
        "js/none.js",
        "js//main.js",
    ],
)
async def test_nothing_else_is_served(service: Service, path: str) -> None:
    response = await service.client.get(f"/console/{path}")
    assert response.status_code == 404
    assert response.headers["content-type"] == "application/problem+json"


async def test_it_is_no_part_of_the_api(service: Service) -> None:
    paths = (await service.client.get("/openapi.json")).json()["paths"]
    assert not [path for path in paths if path == "/" or path.startswith("/console")]
    assert (await service.client.post("/")).status_code == 405


async def test_it_can_be_turned_off(serve: Serve) -> None:
    service = await serve(console=False)
    for path in ("/", "/console/js/main.js"):
        assert (await service.client.get(path)).status_code == 404


async def test_a_rate_limit_does_not_keep_the_page_from_loading(serve: Serve) -> None:
    service = await serve(rate_limit_per_s=1e-6, rate_limit_burst=2)
    for _ in range(5):
        assert (await service.client.get("/")).status_code == 200
        assert (await service.client.get("/console/js/main.js")).status_code == 200
    codes = [(await service.client.get("/versions")).status_code for _ in range(3)]
    assert codes == [200, 200, 429]


def test_every_module_is_used_and_every_one_named_exists() -> None:
    modules = {path.name: path.read_text() for path in FILES if path.suffix == ".js"}
    named = {"main.js"}
    for text in modules.values():
        named |= set(re.findall(r'from "\./([\w.]+)"', text))
    assert named == modules.keys()


def test_the_page_names_only_files_that_exist_and_holds_no_code() -> None:
    page = (FOLDER / "index.html").read_text()
    named = re.findall(r'(?:src|href)="(console/[^"]+)"', page)
    assert len(named) == 5
    for name in named:
        assert (FOLDER.parent / name).is_file(), name
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*\ssrc=)", page)


def test_no_module_parses_text_as_html() -> None:
    forbidden = re.compile(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\(|new Function|"
        r"createContextualFragment|setAttribute\(\"style|localStorage|sessionStorage|"
        r"https?://(?!www\.w3\.org/2000/svg)"
    )
    for path in FILES:
        if path.suffix == ".js":
            assert not forbidden.findall(path.read_text()), path.name
            assert len(path.read_text().splitlines()) < 300, path.name


def test_the_package_carries_every_file() -> None:
    project = (Path(__file__).parents[4] / "pyproject.toml").read_text()
    assert '"console/**/*"' in project
