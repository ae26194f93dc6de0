"""Once keys are configured: every refusal is documented, and nothing is done for whom it meets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest

from tests.contract import corpus
from tests.contract.campaign import Campaign
from tests.contract.subject import Subject, bearer, running

ADMIN, SHOPPER = "an-admin-key-of-the-tests", "a-key-for-rewrites-alone"
_OPEN = {"GET /livez", "GET /readyz"}
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    file: Path = tmp_path_factory.mktemp("keys") / "keys.json"
    key = {"name": "shop", "sha256": sha256(SHOPPER.encode()).hexdigest(), "scopes": ["rewrite"]}
    file.write_text(json.dumps([key]))
    with running(admin_key=ADMIN, api_keys_file=file) as subject:
        yield subject


def _statuses(guarded: Subject, *headers: tuple[bytes, bytes]) -> dict[str, set[int]]:
    campaign = Campaign(guarded)
    found: dict[str, set[int]] = {}
    for operation in campaign.operations:
        for valid in operation.valid():
            guarded.reset()
            sent = replace(valid, headers=(*valid.headers, *headers))
            answer = campaign.send(operation, "valid", sent)
            assert answer is not None
            found.setdefault(str(operation), set()).add(answer.status)
    assert not campaign.failures, "\n\n".join(campaign.failures)
    return found


def test_without_a_key_nothing_but_health_is_told(guarded: Subject) -> None:
    for operation, found in _statuses(guarded).items():
        assert found == ({200} if operation in _OPEN else {401}), operation


def test_with_the_admin_key_everything_is_done(guarded: Subject) -> None:
    for operation, found in _statuses(guarded, bearer(ADMIN)).items():
        assert found <= {200, 201, 202, 204}, operation


def test_a_shopper_s_key_changes_nothing(guarded: Subject) -> None:
    found = _statuses(guarded, bearer(SHOPPER))
    assert found["POST /rewrite"] == {200}
    changing = {one for one in found if not one.startswith("GET")}
    shopping = {"POST /rewrite", "POST /rewrite/batch", "POST /relevance"}
    for operation in changing - shopping:
        assert found[operation] == {403}, operation


def test_hostile_keys_are_refused_as_documented(guarded: Subject) -> None:
    # Wrong keys soon become too many, and then not even the right one resets anything.
    campaign = Campaign(guarded, resets=False)
    changes = next(one for one in campaign.operations if str(one) == "PUT /routing/kill")
    for name, value in corpus.HEADER_VALUES.items():
        for header in (value, b"Bearer " + value, b"bearer\t" + value, b"Basic " + value):
            sent = changes.with_header(b"authorization", header)
            answer = campaign.send(changes, f"authorization: {name}", sent)
            assert answer is not None
            assert answer.status in (401, 429), (name, header[:80])
    assert not campaign.failures, "\n\n".join(campaign.failures)
