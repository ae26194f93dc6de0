"""The nightly script against a service that says what it was told to."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from examples.your_shop import refresh


def record(harmed: float = 0.0, gain: float = 0.1) -> dict[str, Any]:
    return {
        "trial": {
            "figures": {
                "adapted": {"harmed": [harmed, 0.0, 0.1]},
                "difference": {"gain": [gain, gain, gain]},
            }
        }
    }


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (record(), None),
        (record(harmed=0.03), "3.0% of the queries are harmed"),
        (record(gain=-0.1), "its gain in recall is lower"),
        ({}, "nothing was tried"),
    ],
)
def test_a_worse_version_gets_no_traffic(
    found: dict[str, Any], reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(refresh, "adapt", lambda *_: found)

    def give(_service: httpx.Client, name: str, _share: float) -> str:
        asked.append(name)
        return name

    monkeypatch.setattr(refresh, "give_traffic", give)
    assert (refresh.worse(found) or "").startswith(reason or "")
    assert refresh.main(["p.csv"]) == (1 if reason else 0)
    assert bool(asked) == (reason is None)


@pytest.mark.parametrize(
    ("share", "put"),
    [
        (0.1, {"default": "old", "salt": "s", "weights": {"old": 0.9, "new": 0.1}}),
        (1.0, {"default": "new", "salt": "s"}),
    ],
)
def test_routing_is_changed_from_the_revision_that_was_read(
    share: float, put: dict[str, Any]
) -> None:
    seen: list[tuple[str, str]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append((request.method, request.url.path))
        if request.method == "PUT":
            assert request.headers["if-match"] == '"7"'
            assert json.loads(request.content) == put
        routing = {"default": "old", "salt": "s"}
        return httpx.Response(200, json=routing, headers={"etag": '"7"'})

    with httpx.Client(base_url="http://x", transport=httpx.MockTransport(answer)) as service:
        assert refresh.give_traffic(service, "new", share) == "old"
    assert seen == [("POST", "/versions/new/load"), ("GET", "/routing"), ("PUT", "/routing")]
