"""Shopper text is only text to the tokenizer, whatever it holds."""

from __future__ import annotations

from functools import cache

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer

from model_store.prompt import PromptFormat
from model_store.text import normalise
from tests.contract.corpus import PROMPT_TOKENS
from tests.fuzz.profile import fuzzed
from tests.fuzz.strategies import encodable
from tests.support.model_versions import PROMPT, byte_tokenizer

_ALSO = [token for token in PROMPT_TOKENS if token not in vars(PROMPT).values()]

# Whole tokens, and parts that make one where they meet.
parts = st.sampled_from(
    [*PROMPT_TOKENS, "<", ">", "|", "<|", "|>", "<file", "name>", "im_", "end", "_start", " "]
)
texts = st.lists(parts | encodable, max_size=8).map("".join)


@cache
def prompt_format() -> tuple[PromptFormat, frozenset[int]]:
    """A format, and the ids that text must never have."""
    tokenizer: Tokenizer = byte_tokenizer()
    # Special tokens that swallow the blanks around them, as some bases have.
    tokenizer.add_special_tokens(
        [AddedToken(text, special=True, lstrip=True, rstrip=True) for text in _ALSO]
    )
    made = PromptFormat(tokenizer, PROMPT)
    named = [*vars(PROMPT).values(), *_ALSO]
    ids = {tokenizer.token_to_id(name) for name in named if isinstance(name, str)}
    return made, frozenset(id_ for id_ in ids if id_ is not None)


@fuzzed
@given(texts, texts)
def test_text_never_becomes_a_special_token(query: str, rewrite: str) -> None:
    made, special = prompt_format()
    assert len(special) == len(PROMPT_TOKENS)
    query, rewrite = made.normalise(query), made.normalise(rewrite)
    for text in (query, rewrite):
        ids = made.encode(text)
        assert not special.intersection(ids)
        assert made.decode(ids) == text
    prompt = made.rewrite_prompt(query)
    assert [i for i, id_ in enumerate(prompt) if id_ in special] == [0, len(prompt) - 1]
    tag = made.tag_prompt(query, rewrite)
    assert tag[: len(prompt)] == prompt
    assert not special.intersection(tag[len(prompt) :])


@fuzzed
@given(st.lists(texts, max_size=5))
def test_many_are_encoded_like_each(many: list[str]) -> None:
    made, _ = prompt_format()
    normal = [normalise(text, fold_case=True) for text in many]
    assert made.encode_batch(normal) == [made.encode(text) for text in normal]


@fuzzed
@given(st.lists(st.integers(0, 270), max_size=20))
def test_whatever_is_generated_can_be_read(ids: list[int]) -> None:
    made, special = prompt_format()
    text = made.decode(ids)
    text.encode()
    kept = [id_ for id_ in ids if id_ not in special]
    assert text == made.decode(kept)
