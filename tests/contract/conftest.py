from __future__ import annotations

from collections.abc import Iterator

import hypothesis.core
import pytest

from tests.contract.campaign import Campaign
from tests.contract.subject import Subject, running


@pytest.fixture(scope="module")
def subject() -> Iterator[Subject]:
    # schemathesis has Hypothesis print nothing of the values that fail, for all tests that follow.
    printer = vars(hypothesis.core)["RepresentationPrinter"]
    with running() as started:
        yield started
    vars(hypothesis.core)["RepresentationPrinter"] = printer


@pytest.fixture
def campaign(subject: Subject) -> Iterator[Campaign]:
    """One whose failures fail the test."""
    subject.reset()
    subject.faults()
    made = Campaign(subject)
    yield made
    assert not made.failures, "\n\n".join(made.failures)
    assert sum(made.statuses.values()), "nothing was sent"
