"""The labels' logits in place of log probabilities, with a sampler of the same parts as vLLM's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from service.engine.scoring import label_probability  # noqa: E402 - torch may not be there
from service.engine.worker.errors import LayoutChanged  # noqa: E402
from service.engine.worker.label_logits import LabelColumns, LabelLogits  # noqa: E402
from tests.support.vllm_parts import Found, LlamaForCausalLM, Sampler  # noqa: E402

LABELS = [7, 3]
VOCABULARY = 12


def worker(sampler: Any) -> LabelLogits:
    made = LabelLogits()
    made.model_runner = SimpleNamespace(sampler=sampler, get_model=LlamaForCausalLM)
    return made


def logits() -> Any:
    torch.manual_seed(0)
    found = torch.randn(5, VOCABULARY) * 8
    # Among the tokens that are drawn are both labels.
    found[1, LABELS[0]] = found[2, LABELS[1]] = 40.0
    return found


ASKED = dict.fromkeys(range(5), LABELS)
TEMPERATURES = torch.tensor([1.0, 0.5, 2.0, 0.8, 1.2])


def test_tags_and_tokens_are_those_of_the_whole_vocabulary() -> None:
    usual_drawn, usual = Sampler()(logits(), TEMPERATURES, ASKED)
    sampler = Sampler()
    worker(sampler).report_labels_alone(LABELS)
    drawn, found = sampler(logits(), TEMPERATURES, ASKED)
    assert usual is not None
    assert found is not None
    assert torch.equal(drawn, usual_drawn)
    # The token that was drawn, then the labels in the order in which they are asked for.
    assert found.logprob_token_ids.tolist() == [[token, *LABELS] for token in drawn.tolist()]
    for ours, theirs in zip(found, usual, strict=True):
        if theirs is not None:
            assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
    assert torch.equal(found.logprob_token_ids, usual.logprob_token_ids)
    for ours, theirs in zip(found.logprobs.tolist(), usual.logprobs.tolist(), strict=True):
        assert ours[1] - ours[2] == pytest.approx(theirs[1] - theirs[2], abs=1e-4)


def test_a_drawn_label_has_a_logit_of_its_own() -> None:
    """Read as vLLM's flat log probabilities are: by token, and the last of two wins."""
    sampler, raw = Sampler(), logits()
    expected = raw[:, LABELS].tolist()
    worker(sampler).report_labels_alone(LABELS)
    drawn, found = sampler(raw, TEMPERATURES, ASKED)
    assert found is not None
    assert {LABELS[0], LABELS[1]} < set(drawn.tolist())
    for tokens, values, labels in zip(
        found.logprob_token_ids.tolist(), found.logprobs.tolist(), expected, strict=True
    ):
        read = dict(zip(tokens, values, strict=True))
        assert [read[label] for label in LABELS] == labels
        assert label_probability(*labels) == label_probability(*(read[la] for la in LABELS))


def test_logits_are_copied_before_the_temperatures_divide_them() -> None:
    raw = logits()
    before = raw[:, LABELS].clone()
    found = LabelColumns(lambda *_: None, LABELS).compute(raw)
    raw.div_(TEMPERATURES.unsqueeze(1))
    assert torch.equal(found, before)
    assert not torch.equal(found, raw[:, LABELS])
    assert found.shape == (5, 2)


def test_what_the_sampler_gathered_is_not_written_to() -> None:
    kept = Found(torch.zeros(1, 3, dtype=torch.int32), torch.zeros(1, 3), torch.ones(1))
    found = LabelColumns(lambda *_: kept, LABELS).gather(
        torch.zeros(1, 2), {0: LABELS}, torch.tensor([9])
    )
    assert found.logprob_token_ids.tolist() == [[9, *LABELS]]
    assert kept.logprob_token_ids.tolist() == [[0, 0, 0]]
    assert found.logprobs is kept.logprobs


def test_where_nothing_is_asked_for_nothing_is_reported() -> None:
    sampler = Sampler()
    worker(sampler).report_labels_alone(LABELS)
    drawn, found = sampler(logits(), TEMPERATURES, {})
    assert found is None
    assert torch.equal(drawn, logits().argmax(-1))


def other_numbers(sampler: Any) -> None:
    own = sampler.compute_logprobs
    sampler.compute_logprobs = lambda logits: own(logits / 2)


def other_tokens(sampler: Any) -> None:
    own = sampler.gather_specific_token_logprobs

    def sorted_by_id(logprobs: Any, asked: Any, drawn: Any) -> Any:
        return own(logprobs, {row: sorted(ids) for row, ids in asked.items()}, drawn)

    sampler.gather_specific_token_logprobs = sorted_by_id


@pytest.mark.parametrize("change", [other_numbers, other_tokens])
def test_a_sampler_that_gives_other_tags_is_left_alone(change: Any) -> None:
    sampler = Sampler()
    change(sampler)
    before = dict(vars(sampler))
    with pytest.raises(LayoutChanged):
        worker(sampler).report_labels_alone(LABELS)
    assert vars(sampler) == before


@pytest.mark.parametrize(
    "sampler",
    [
        None,
        SimpleNamespace(),
        SimpleNamespace(compute_logprobs=Sampler.compute_logprobs),
        SimpleNamespace(gather_specific_token_logprobs=print),
    ],
)
def test_a_sampler_with_other_methods_is_left_alone(sampler: Any) -> None:
    before = dict(vars(sampler)) if sampler else {}
    with pytest.raises((AttributeError, TypeError)):
        worker(sampler).report_labels_alone(LABELS)
    assert (vars(sampler) if sampler else {}) == before


def test_log_probabilities_computed_elsewhere_are_reported_as_they_are() -> None:
    sampler = Sampler()
    made = worker(sampler)
    made.report_labels_alone(LABELS)
    assert made.labels_refused() == ""
    raw, drawn = Sampler.compute_logprobs(logits()), logits().argmax(-1)
    found = sampler.gather_specific_token_logprobs(raw, ASKED, drawn)
    expected = Sampler().gather_specific_token_logprobs(raw, ASKED, drawn)
    assert found is not None
    assert expected is not None
    assert torch.equal(found.logprobs, expected.logprobs)
    assert "another way" in made.labels_refused()
