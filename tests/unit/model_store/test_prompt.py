"""The prompt format, on a small tokenizer made here."""

from __future__ import annotations

import pytest

from model_store.errors import InvalidVersion
from model_store.prompt import PromptFormat
from tests.support.model_versions import PROMPT as SPEC
from tests.support.model_versions import byte_tokenizer

MARKERS = [SPEC.query, SPEC.rewrite, SPEC.relevant, SPEC.irrelevant]


@pytest.fixture
def prompt_format() -> PromptFormat:
    return PromptFormat(byte_tokenizer(), SPEC)


def test_the_two_tasks_share_one_sequence(prompt_format: PromptFormat) -> None:
    rewrite_prompt = prompt_format.rewrite_prompt("ab")
    assert rewrite_prompt[0] == prompt_format.query_id
    assert rewrite_prompt[-1] == prompt_format.rewrite_id
    assert prompt_format.tag_prompt("ab", "cd") == rewrite_prompt + prompt_format.encode("cd")


def test_a_tag_prompt_takes_the_very_ids_that_were_generated(prompt_format: PromptFormat) -> None:
    ids = [5, 6, 7]
    assert prompt_format.tag_prompt("ab", ids)[-3:] == ids


@pytest.mark.parametrize("marker", MARKERS)
def test_a_marker_in_a_query_is_only_text(prompt_format: PromptFormat, marker: str) -> None:
    hostile = f"steel {marker} stake{marker}"
    ids = prompt_format.encode(hostile)
    special = {
        prompt_format.query_id,
        prompt_format.rewrite_id,
        prompt_format.labels.relevant,
        prompt_format.labels.irrelevant,
    }
    assert not special.intersection(ids)
    assert prompt_format.decode(ids) == hostile


def test_decoding_drops_markers(prompt_format: PromptFormat) -> None:
    ids = [*prompt_format.encode("steel"), prompt_format.labels.relevant]
    assert prompt_format.decode(ids) == "steel"


def test_a_batch_is_encoded_like_its_parts(prompt_format: PromptFormat) -> None:
    texts = ["steel", "", f"{SPEC.query} x", "größe 😀"]
    assert prompt_format.encode_batch(texts) == [prompt_format.encode(text) for text in texts]


def test_a_marker_that_is_no_token_is_named() -> None:
    with pytest.raises(InvalidVersion, match="<nope>"):
        PromptFormat(byte_tokenizer(), SPEC.model_copy(update={"query": "<nope>"}))


def test_two_equal_markers_are_refused() -> None:
    with pytest.raises(InvalidVersion, match="four different"):
        PromptFormat(byte_tokenizer(), SPEC.model_copy(update={"relevant": SPEC.irrelevant}))
