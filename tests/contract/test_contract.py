"""Requests made of the OpenAPI document, and of the corpus: a short walk through the long run.

``python -m tests.contract`` (``make fuzz``) sends many times as many.
"""

from __future__ import annotations

import pytest

from tests.contract import corpus
from tests.contract.campaign import Campaign

# Bounds a run that hangs; on a machine with nothing else to do each takes some seconds.
pytestmark = pytest.mark.timeout(900)


def test_the_valid_request_of_every_operation_succeeds(campaign: Campaign) -> None:
    refused = {
        f"{operation}: {answer.status} {answer.body!r}: name what it needs in NAMES"
        for operation, answer in campaign.samples()
        if answer is not None and answer.status >= 300
    }
    assert not refused


def test_every_operation_has_something_to_fuzz(campaign: Campaign) -> None:
    """The walk through the document finds bodies, paths, queries and headers."""
    campaign.send(campaign.operations[0], "valid", campaign.operations[0].valid()[0])
    places = {f"{one}: {place.where}" for one in campaign.operations for place in one.places()}
    assert {
        "POST /rewrite: body 0 query", "POST /rewrite: header X-Request-Deadline-Ms",
        "POST /rewrite/batch: body 0 queries.0", "POST /rewrite/batch: body 1 queries.0.unit_id",
        "PUT /routing: body 0 weights.test-1", "PUT /routing: header If-Match",
        "POST /overrides: body 2 rewrites.0", "DELETE /overrides/{id}: query reason",
        "GET /overrides/{id}: path id", "POST /versions/{name}/load: path name",
        "PUT /routing/kill: key 0 ",
    } <= places  # fmt: skip
    assert len(campaign.operations) >= 23


def test_hostile_values_in_every_place(campaign: Campaign) -> None:
    campaign.hostile_values(stride=23, offset=1)
    assert {200, 400, 422} <= set(campaign.statuses)


def test_hostile_bodies(campaign: Campaign) -> None:
    campaign.hostile_bodies(stride=4)
    assert {200, 400, 413, 415, 422} <= set(campaign.statuses)


def test_hostile_headers(campaign: Campaign) -> None:
    campaign.hostile_headers(stride=47)
    assert {200, 403, 422} <= set(campaign.statuses)


def test_boundaries_of_the_document(campaign: Campaign) -> None:
    campaign.boundaries(stride=6)
    assert {200, 405, 422} <= set(campaign.statuses)


def test_generated_requests(campaign: Campaign) -> None:
    campaign.generated(6)
    assert {200, 201, 422} <= set(campaign.statuses)


def test_the_corpus_holds_what_it_should() -> None:
    everything = "".join(corpus.STRINGS.values())
    for needle in ("\x00", "\ud800", "\u202e", "<|im_end|>", "\r\n", "../", "DROP TABLE", "{0}"):
        assert needle in everything
    assert max(map(len, corpus.STRINGS.values())) > 4096
