"""Log probabilities of sampled completions, each prompt computed once for all of its samples.

The samples of a group share their prompt, and differ in length: packed as
:mod:`training.data.packing` packs pairs, they take a third of the tokens of a padded batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from training.data.packing import Collator, Row, hidden_states

Ids = Sequence[int]


def pack_groups(
    prompts: Sequence[Ids], completions: Sequence[Ids], row_tokens: int
) -> tuple[list[Row], list[int]]:
    """Rows of at most ``row_tokens``, unless one group alone is longer.

    Args:
        prompts: one for each completion; equal ones form a group.
        completions: token ids, at least one each, with the stop token where there is one.
        row_tokens: width of a row.

    Returns:
        the rows, and the index of the completion that each run of targets belongs to, in the
        order in which the rows hold them.
    """
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, prompt in enumerate(prompts):
        groups.setdefault(tuple(prompt), []).append(index)

    def tokens(prompt: tuple[int, ...]) -> int:
        return len(prompt) + sum(len(completions[i]) - 1 for i in groups[prompt])

    rows: list[tuple[Row, list[int]]] = []
    # Longest first: the short ones fill what is left.
    for prompt in sorted(groups, key=tokens, reverse=True):
        size = tokens(prompt)
        home = next((r for r in rows if len(r[0].ids) + size <= row_tokens), None)
        if home is None:
            home = (Row(), [])
            rows.append(home)
        home[0].add_completions(prompt, [completions[i] for i in groups[prompt]])
        home[1].extend(groups[prompt])
    return [row for row, _ in rows], [index for _, held in rows for index in held]


def log_probs(
    base: Any,
    prompts: Sequence[Ids],
    completions: Sequence[Ids],
    *,
    pad_id: int,
    temperature: float,
    row_tokens: int = 256,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log probability and entropy of each completion's tokens.

    The head is called as a module, because an adapter trains some of its rows: its bare weights, as
    a fused kernel would take them, are not what the model says.

    Args:
        base: a causal model with ``model`` and ``lm_head``, adapter inside.
        prompts: one for each completion.
        completions: token ids.
        pad_id: fills rows.
        temperature: logits are divided by it, as they were when the completions were sampled.
        row_tokens: width of a packed row.

    Returns:
        two float32 tensors of ``completions x longest completion``, 0 beyond an end; the entropy
        (nats) carries no gradient.
    """
    rows, order = pack_groups(prompts, completions, row_tokens)
    batch = Collator(pad_id)(rows)
    device = next(base.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in batch.items()}
    hidden = hidden_states(base, batch)
    logits = base.lm_head(hidden[batch["source"]]).float() / temperature
    every = torch.log_softmax(logits, dim=-1)
    chosen = every.gather(1, batch["target"][:, None])[:, 0]
    with torch.no_grad():
        spread = -(every.exp() * every).sum(-1)
    lengths = [len(c) for c in completions]
    sequence = torch.tensor([i for i in order for _ in range(lengths[i])], device=device)
    offset = torch.tensor([t for i in order for t in range(lengths[i])], device=device)
    shape = (len(completions), max(lengths))
    at = (sequence, offset)
    return (
        chosen.new_zeros(shape).index_put(at, chosen),
        spread.new_zeros(shape).index_put(at, spread),
    )
