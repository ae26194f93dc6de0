"""Rules that all operations share: names, tags, versions of the interface, query strings, pages."""

from __future__ import annotations

from typing import Any

import pytest

from tests.docs import contract
from tests.support.service import Service

PROBES = {"/livez", "/readyz", "/metrics"}


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method.upper(), path, operation)
        for path, item in document["paths"].items()
        for method, operation in item.items()
    ]


async def test_every_operation_has_a_tag_that_is_described(service: Service) -> None:
    document = (await service.client.get("/openapi.json")).json()
    assert [server["url"] for server in document["servers"]] == ["/", "/v1"]
    described = {tag["name"] for tag in document["tags"]}
    assert {name for _, _, one in operations(document) for name in one["tags"]} == described
    assert all(one["tags"] for _, _, one in operations(document))


async def test_every_body_has_an_example_and_every_error_its_problems(service: Service) -> None:
    document = (await service.client.get("/openapi.json")).json()
    for method, path, operation in operations(document):
        bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
        for media, content in (pair for one in bodies for pair in one.get("content", {}).items()):
            examples = [content["example"]] if "example" in content else []
            examples += [one["value"] for one in content.get("examples", {}).values()]
            assert examples or media == "text/plain", f"{method} {path} {media}"
            for example in examples:
                contract.check(document, content["schema"], example)
    wrong = operations(document)[0][2]["responses"]["400"]["content"]["application/problem+json"]
    with pytest.raises(AssertionError):
        contract.check(document, wrong["schema"], {"type": 5})


async def test_every_operation_is_under_v1_too(service: Service) -> None:
    """The same answer to a request without a body, but for what differs each time."""
    document = (await service.client.get("/openapi.json")).json()
    for method, path, _ in operations(document):
        target = path.replace("{name}", "test-1").replace("{id}", "x")
        short = await service.client.request(method, target)
        long = await service.client.request(method, f"/v1{target}")
        assert short.status_code == long.status_code, (method, path)
        assert short.status_code != 405
        kinds = [(one.headers.get("content-type"), len(one.content) > 0) for one in (short, long)]
        assert kinds[0] == kinds[1]
    assert (await service.client.post("/v1/rewrite", json={"query": "a"})).status_code == 200
    assert (await service.client.get("/v2/versions")).status_code == 404


async def test_an_unknown_query_parameter_is_answered_like_an_unknown_field(
    service: Service,
) -> None:
    document = (await service.client.get("/openapi.json")).json()
    for method, path, operation in operations(document):
        target = path.replace("{name}", "test-1").replace("{id}", "x")
        for prefix in ("", "/v1"):
            answer = await service.client.request(method, f"{prefix}{target}?limitt=3&x%0a")
            if path in PROBES:
                assert answer.status_code == 200
                continue
            assert answer.status_code == 422, (method, path)
            assert "422" in operation["responses"]
            fields = [error["field"] for error in answer.json()["errors"]]
            assert fields[0] == "query limitt"


async def test_pages_take_a_query_of_any_kind(service: Service) -> None:
    for path in ("/", "/docs", "/livez", "/readyz", "/metrics"):
        assert (await service.client.get(f"{path}?x=1")).status_code == 200


async def test_one_version(service: Service) -> None:
    listed = (await service.client.get("/versions")).json()["versions"]
    one = await service.client.get("/versions/test-1")
    assert (one.status_code, one.json()) == (200, listed[0])
    missing = await service.client.get("/versions/none")
    assert (missing.status_code, missing.json()["type"]) == (
        404,
        "urn:requery:problem:unknown-version",
    )


async def added(service: Service, count: int) -> None:
    for i in range(count):
        body = {"kind": "block_query", "query": f"query {i}", "reason": "r"}
        assert (await service.client.post("/overrides", json=body)).status_code == 201


async def pages(service: Service, path: str, member: str) -> tuple[list[Any], list[int]]:
    """All entries of a list, two at a time, and how many each page has."""
    entries, sizes, offset = [], [], 0
    while offset is not None:
        answer = (await service.client.get(path, params={"limit": 2, "offset": offset})).json()
        entries += answer[member]
        sizes.append(len(answer[member]))
        offset = answer["next_offset"]
    return entries, sizes


@pytest.mark.parametrize(("path", "member"), [("/overrides", "overrides"), ("/audit", "entries")])
async def test_lists_have_pages(service: Service, path: str, member: str) -> None:
    await added(service, 5)
    whole = (await service.client.get(path)).json()
    assert (len(whole[member]), whole["next_offset"]) == (5, None)
    entries, sizes = await pages(service, path, member)
    assert entries == whole[member]
    assert sizes == [2, 2, 1]
    beyond = (await service.client.get(path, params={"offset": 5})).json()
    assert (beyond[member], beyond["next_offset"]) == ([], None)


async def test_the_last_page_of_a_list_may_be_full(service: Service) -> None:
    await added(service, 4)
    for path, member in (("/overrides", "overrides"), ("/audit", "entries")):
        assert (await pages(service, path, member))[1] == [2, 2]
    assert (await service.client.get("/overrides?limit=1")).json()["total"] == 4


@pytest.mark.parametrize("path", ["/overrides", "/audit"])
@pytest.mark.parametrize(
    ("name", "value"), [("limit", "0"), ("limit", "x"), ("offset", "-1"), ("offset", "9999999")]
)
async def test_a_page_that_is_none(service: Service, path: str, name: str, value: str) -> None:
    answer = await service.client.get(path, params={name: value})
    assert answer.status_code == 422
    assert [error["field"] for error in answer.json()["errors"]] == [f"query {name}"]
