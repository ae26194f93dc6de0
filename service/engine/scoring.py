"""The arithmetic of one finished generation: from tokens and log probabilities to a candidate."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from model_store.prompt import LabelIds, PromptFormat
from service.engine.errors import QueryTooLong
from service.engine.protocol import Candidate


def label_probability(relevant: float, irrelevant: float) -> float:
    """P(RELEVANT) / (P(RELEVANT) + P(IRRELEVANT)) from two natural log probabilities, or logits.

    Only their difference counts, so the sum over the vocabulary, which both lack, cancels out.

    Args:
        relevant: log probability, or logit, of the label RELEVANT; ``-inf`` for none.
        irrelevant: that of IRRELEVANT.

    Returns:
        A probability in [0, 1]; 0.5 if both have probability zero.
    """
    if relevant == irrelevant:  # two times -inf would make a NaN below
        return 0.5
    # The logistic function of the difference, in a form that cannot overflow.
    margin = relevant - irrelevant
    if margin >= 0:
        return 1.0 / (1.0 + math.exp(-margin))
    odds = math.exp(margin)
    return odds / (1.0 + odds)


def relevance(labels: LabelIds, logprobs: Mapping[int, float]) -> float:
    """The tag at one position.

    Args:
        labels: ids of the two labels.
        logprobs: raw log probability, or logit, by token id at that position; holds both labels.

    Raises:
        KeyError: a label is missing: the request did not ask for it.
    """
    return label_probability(logprobs[labels.relevant], logprobs[labels.irrelevant])


def read_candidate(
    prompts: PromptFormat,
    token_ids: Sequence[int],
    last_logprobs: Mapping[int, float],
    stop_ids: frozenset[int],
) -> Candidate:
    """A candidate from an engine's output.

    Args:
        prompts: the version's prompt format, for the labels and for decoding.
        token_ids: all generated ids, at least one, the stop token included.
        last_logprobs: raw log probabilities, or logits, at the last generated position.
        stop_ids: every id that ends a generation, the labels among them.

    Returns:
        The rewrite without its tag. ``relevance`` is ``None`` if the generation did not end with a
        label: out of tokens, or at the base's end-of-text or another special token.
    """
    last = token_ids[-1]
    body = token_ids[:-1] if last in stop_ids else token_ids
    tagged = last in (prompts.labels.relevant, prompts.labels.irrelevant)
    return Candidate(
        text=prompts.decode(body),
        token_ids=tuple(body),
        relevance=relevance(prompts.labels, last_logprobs) if tagged else None,
    )


def within(limit: int, prompt: list[int]) -> list[int]:
    """``prompt`` itself, if it has at most ``limit`` tokens.

    Raises:
        QueryTooLong: it has more.
    """
    if len(prompt) > limit:
        raise QueryTooLong(
            f"the text has {len(prompt)} tokens with its markers, at most {limit} are possible; "
            "shorten it"
        )
    return prompt
