"""Headers, request ids, the OpenAPI document and faults nobody thought of."""

from __future__ import annotations

import re

import pytest

from service.api.schemas import Problem
from service.errors import RequeryError
from service.pipeline.rewriter import Rewriter
from tests.support.service import Service


async def test_server_timing_names_every_stage(service: Service) -> None:
    response = await service.client.post("/rewrite", json={"query": "steele stake"})
    names = re.findall(r"(\w+);dur=\d+\.\d+", response.headers["server-timing"])
    assert names == ["prepare", "cache", "generate", "filter", "total"]


async def test_a_sane_request_id_is_kept(service: Service) -> None:
    response = await service.client.post(
        "/rewrite", json={"query": "a stake"}, headers={"x-request-id": "search-17"}
    )
    assert response.headers["x-request-id"] == response.json()["request_id"] == "search-17"


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, 'x"y', "é", "-x"])
async def test_other_request_ids_are_replaced(service: Service, given: str) -> None:
    response = await service.client.get("/livez", headers={b"x-request-id": given.encode()})
    assert re.fullmatch(r"[0-9a-f]{32}", response.headers["x-request-id"])


async def test_each_request_has_an_id_of_its_own(service: Service) -> None:
    first, second = [await service.client.get("/livez") for _ in range(2)]
    assert first.headers["x-request-id"] != second.headers["x-request-id"]


async def test_answers_are_not_for_caches_on_the_way(service: Service) -> None:
    ok = await service.client.post("/rewrite", json={"query": "a stake"})
    bad = await service.client.post("/rewrite", json={})
    assert ok.headers["cache-control"] == bad.headers["cache-control"] == "no-store"


async def test_a_fault_nobody_thought_of_is_a_plain_500(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken(*_: object) -> None:
        raise KeyError("inner secret")

    monkeypatch.setattr(Rewriter, "rewrite", broken)
    response = await service.client.post("/rewrite", json={"query": "a stake"})
    assert response.status_code == 500
    problem = Problem.model_validate_json(response.content)
    assert problem.type == "urn:requery:problem:internal"
    assert problem.request_id == response.headers["x-request-id"]
    assert "inner secret" not in response.text
    assert "inner secret" in capsys.readouterr().out


@pytest.mark.parametrize("path", ["/rewrite/", "/v1/rewrite/", "/versions/"])
async def test_a_slash_too_many_is_not_redirected(service: Service, path: str) -> None:
    """A redirect would lead to ``http://`` behind a proxy that ends TLS."""
    for method in ("GET", "POST"):
        response = await service.client.request(method, path, json={"query": "a stake"})
        assert (response.status_code, response.json()["type"]) == (
            404,
            "urn:requery:problem:not-found",
        )


def test_every_error_has_a_type_and_title_of_its_own() -> None:
    def family(kind: type[RequeryError]) -> list[type[RequeryError]]:
        return [kind, *(each for child in kind.__subclasses__() for each in family(child))]

    kinds = [kind for kind in family(RequeryError) if not kind.__name__.startswith("_")]
    assert len({kind.slug for kind in kinds}) == len(kinds)
    assert len({kind.title for kind in kinds}) == len(kinds)
    assert all(400 <= kind.status <= 599 for kind in kinds)
