from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from model_store.manifest import PromptSpec
from model_store.prompt import PromptFormat
from service.engine.errors import QueryTooLong
from service.engine.loading import special_ids
from service.engine.scoring import label_probability, read_candidate, relevance, within
from service.errors import RequeryError

LOGPROB = st.floats(max_value=0.0, min_value=-1e6)


@pytest.fixture(scope="module")
def prompts() -> PromptFormat:
    return PromptFormat(make_tokenizer(), SPEC)


SPEC = PromptSpec(query="<q>", rewrite="<r>", relevant="<yes>", irrelevant="<no>")


def make_tokenizer() -> Tokenizer:
    """Byte-level, without merges: each byte is a token, then five special ones."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(
        [AddedToken(t, special=True) for t in ("<q>", "<r>", "<yes>", "<no>", "<eos>")]
    )
    return tokenizer


@given(LOGPROB, LOGPROB)
def test_label_probability_is_a_probability_and_symmetric(a: float, b: float) -> None:
    p = label_probability(a, b)
    assert 0.0 <= p <= 1.0
    assert p + label_probability(b, a) == pytest.approx(1.0)
    if a - b > 1e-6:
        assert p > 0.5


def test_label_probability_of_impossible_labels() -> None:
    none = float("-inf")
    assert label_probability(none, none) == 0.5
    assert label_probability(-3.0, none) == 1.0
    assert label_probability(none, -3.0) == 0.0


def test_relevance_reads_the_labels_whatever_was_sampled(prompts: PromptFormat) -> None:
    yes, no = prompts.labels.relevant, prompts.labels.irrelevant
    assert relevance(prompts.labels, {17: -0.1, yes: -1.0, no: -2.0}) == pytest.approx(0.7310586)
    assert relevance(prompts.labels, {no: -1.0, yes: -2.0}) == pytest.approx(1 - 0.7310586)
    with pytest.raises(KeyError):
        relevance(prompts.labels, {yes: -1.0})


def test_a_generation_that_ends_by_either_label_is_tagged(prompts: PromptFormat) -> None:
    stop = frozenset(special_ids(make_tokenizer(), prompts))
    body = prompts.encode("ab c")
    for label in (prompts.labels.relevant, prompts.labels.irrelevant):
        logprobs = {prompts.labels.relevant: -0.5, prompts.labels.irrelevant: -1.5}
        found = read_candidate(prompts, [*body, label], logprobs, stop)
        assert (found.text, found.token_ids) == ("ab c", tuple(body))
        assert found.relevance == pytest.approx(label_probability(-0.5, -1.5))


def test_a_generation_that_ends_by_length_or_end_of_text_has_no_tag(prompts: PromptFormat) -> None:
    tokenizer = make_tokenizer()
    stop = frozenset(special_ids(tokenizer, prompts))
    logprobs = {prompts.labels.relevant: -0.5, prompts.labels.irrelevant: -1.5}
    body = prompts.encode("ab")
    eos = tokenizer.token_to_id("<eos>")
    assert eos is not None
    for ids in (body, [*body, eos], [*body, prompts.rewrite_id]):
        found = read_candidate(prompts, ids, logprobs, stop)
        assert (found.text, found.token_ids, found.relevance) == ("ab", tuple(body), None)


def test_a_tag_without_a_rewrite_is_an_empty_text(prompts: PromptFormat) -> None:
    logprobs = {prompts.labels.relevant: -0.5, prompts.labels.irrelevant: -1.5}
    stop = frozenset({prompts.labels.relevant})
    found = read_candidate(prompts, [prompts.labels.relevant], logprobs, stop)
    assert (found.text, found.token_ids) == ("", ())


def test_every_special_token_ends_a_generation(prompts: PromptFormat) -> None:
    tokenizer = make_tokenizer()
    names = {tokenizer.id_to_token(i) for i in special_ids(tokenizer, prompts)}
    assert names == {"<q>", "<r>", "<yes>", "<no>", "<eos>"}


def test_prompt_length_limit() -> None:
    assert within(3, [1, 2, 3]) == [1, 2, 3]
    with pytest.raises(QueryTooLong, match="4 tokens") as caught:
        within(3, [1, 2, 3, 4])
    assert isinstance(caught.value, RequeryError)
    assert caught.value.status == 422
