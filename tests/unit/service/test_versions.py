from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.text import MAX_QUERY_CHARS, normalise
from service.errors import InvalidQuery, UnknownVersion
from service.versions import Version, Versions
from tests.support.versions import make_manifest

FOLDING = Version(make_manifest())
KEEPING = Version(
    make_manifest(
        prompt={
            "query": "a",
            "rewrite": "b",
            "relevant": "c",
            "irrelevant": "d",
            "fold_case": False,
        }
    )
)


@given(st.text(max_size=300) | st.text(st.characters(max_codepoint=127), max_size=300))
def test_the_normal_form_is_that_of_training(text: str) -> None:
    for version, fold_case in ((FOLDING, True), (KEEPING, False)):
        expected = normalise(text, fold_case=fold_case)
        if 1 <= len(expected) <= MAX_QUERY_CHARS:
            assert version.normal_form(text) == expected
        else:
            with pytest.raises(InvalidQuery):
                version.normal_form(text)


def test_a_default_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(UnknownVersion, match=r"'nobody'.*test-1"):
        Versions([FOLDING], default="nobody")


def test_versions_are_listed_by_name() -> None:
    names = [v.name for v in Versions([Version(make_manifest(n)) for n in "cab"], default="a")]
    assert names == ["a", "b", "c"]
