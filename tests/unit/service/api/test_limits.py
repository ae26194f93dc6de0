"""Limits on how many requests a second one caller may make."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from service.api.limits import EXEMPT, buckets
from service.api.schemas import Problem
from service.security import auth
from service.security.api_keys import entry, new_key
from tests.support.calling import calling
from tests.support.service import Serve, Service

KEYS = {name: new_key() for name in ("one", "two")}
SLOW = 1e-6
"""Tokens a second: none comes back while a test runs."""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.yaml"
    path.write_text("".join(entry(n, k, ["rewrite", "metrics"]) for n, k in KEYS.items()))
    return path


async def rewrites(client: httpx.AsyncClient, n: int) -> list[int]:
    asked = [await client.post("/rewrite", json={"query": "a"}) for _ in range(n)]
    return [response.status_code for response in asked]


async def limited(service: Service, by: str) -> float:
    return await service.metric("requery_rate_limited_total", by=by)


async def test_without_a_limit_there_is_none(service: Service) -> None:
    assert set(await rewrites(service.client, 100)) == {200}


async def test_without_keys_each_address_has_its_own(serve: Serve) -> None:
    service = await serve(rate_limit_per_s=SLOW, rate_limit_burst=3)
    for address in ("10.0.0.1", "10.0.0.2", "2001:db8::1"):
        async with calling(service.app, address) as client:
            assert await rewrites(client, 5) == [200] * 3 + [429] * 2
    async with calling(service.app, "2001:db8::2") as neighbour:
        assert await rewrites(neighbour, 1) == [429]
    assert await limited(service, "address") == 7
    assert await limited(service, "key") == 0


async def test_with_keys_each_key_has_its_own_wherever_it_comes_from(
    serve: Serve, file: Path
) -> None:
    service = await serve(rate_limit_per_s=SLOW, rate_limit_burst=4, api_keys_file=file)
    for address, expected in (("10.0.0.1", [200, 200]), ("10.0.0.2", [200, 200, 429])):
        async with calling(service.app, address, KEYS["one"]) as client:
            assert await rewrites(client, len(expected)) == expected
    async with calling(service.app, "10.0.0.1", KEYS["two"]) as client:
        assert await rewrites(client, 1) == [200]
    # One that is not valid counts for the address, and takes nothing from those that are.
    async with calling(service.app, "10.0.0.1", "guess") as client:
        assert await rewrites(client, 5) == [401] * 4 + [429]


async def test_it_says_when_to_try_again_and_is_counted_and_documented(serve: Serve) -> None:
    service = await serve(rate_limit_per_s=0.01, rate_limit_burst=1)
    async with calling(service.app, "10.0.0.1") as client:
        assert await rewrites(client, 1) == [200]
        response = await client.post("/rewrite", json={"query": "a"})
    assert response.status_code == 429
    assert 1 <= int(response.headers["retry-after"]) <= 100
    assert response.headers["content-type"] == "application/problem+json"
    problem = Problem.model_validate_json(response.content)
    assert problem.type == "urn:requery:problem:too-many-requests"
    assert problem.request_id == response.headers["x-request-id"]
    assert await limited(service, "address") == 1
    document = (await service.client.get("/openapi.json")).json()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert ("429" in operation["responses"]) == (path not in ("/livez", "/readyz"))


async def test_health_and_metrics_are_always_answered(serve: Serve) -> None:
    service = await serve(rate_limit_per_s=SLOW, rate_limit_burst=1)
    async with calling(service.app, "10.0.0.1") as client:
        assert await rewrites(client, 2) == [200, 429]
        for path in sorted(EXEMPT) * 3:
            assert (await client.get(path)).status_code == 200


async def test_every_other_path_counts_even_one_that_is_not_there(serve: Serve) -> None:
    service = await serve(rate_limit_per_s=SLOW, rate_limit_burst=3)
    async with calling(service.app, "10.0.0.1") as client:
        for path in ("/openapi.json", "/docs", "/nothing"):
            assert (await client.get(path)).status_code in (200, 404)
        assert (await client.get("/nothing")).status_code == 429


async def test_guesses_are_limited_in_the_whole_application(
    serve: Serve, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "FAILURES_PER_S", SLOW)
    service = await serve(api_keys_file=file)
    async with calling(service.app, "10.0.0.1", "guess") as client:
        asked = [await client.get("/audit") for _ in range(auth.FAILURES_BURST + 1)]
    assert [response.status_code for response in asked] == [401] * auth.FAILURES_BURST + [429]
    headers = {"authorization": f"Bearer {KEYS['one']}"}
    text = (await service.client.get("/metrics", headers=headers)).text
    assert 'requery_rate_limited_total{by="failures"} 1.0' in text


@pytest.mark.parametrize(("per_s", "burst", "at_once"), [(10, None, 20), (0.1, None, 1), (5, 2, 2)])
def test_the_default_burst_is_that_of_two_seconds(
    per_s: float, burst: int | None, at_once: int
) -> None:
    one = buckets(per_s, burst)
    assert round(one._depth / one._interval) == at_once
