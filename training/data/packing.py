"""Packed batches: one query's prefix is computed once for all of its rewrites.

A :class:`Tree` is a prefix with branches. In a packed row every branch sees the prefix and itself,
nothing else, at the positions that it would have alone; so a row gives exactly the losses of the
single sequences ``QUERY q REWRITE r_i LABEL`` at about half of the tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from model_store.prompt import PromptFormat
from training.data.pairs import QueryPairs


@dataclass(frozen=True, slots=True)
class Branch:
    """One rewrite of a tree.

    Attributes:
        ids: the rewrite's tokens.
        relevant: its tag.
        write: whether the tokens are learnt too; else only the tag is.
    """

    ids: tuple[int, ...]
    relevant: bool
    write: bool


@dataclass(frozen=True, slots=True)
class Tree:
    """A prefix and its branches; without branches the prefix itself is learnt (domain text)."""

    prefix: tuple[int, ...]
    branches: tuple[Branch, ...] = ()

    def __len__(self) -> int:
        return len(self.prefix) + sum(len(b.ids) for b in self.branches)


def tree_of(pairs: QueryPairs, prompts: PromptFormat, max_rewrite_tokens: int) -> Tree:
    """The one-pass sequences of one query's pairs; over-long rewrites are left out."""
    branches: list[Branch] = []
    for items, relevant, write in (
        (pairs.write, True, True),
        (pairs.accept, True, False),
        (pairs.reject, False, False),
    ):
        for item in items:
            ids = tuple(prompts.encode(item.text))
            if 0 < len(ids) < max_rewrite_tokens:
                branches.append(Branch(ids, relevant, write))
    return Tree(tuple(prompts.rewrite_prompt(pairs.query)), tuple(branches))


@dataclass(slots=True)
class Row:
    """One packed row. ``source`` positions predict ``target`` ids; ``tag_source`` predict tags."""

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    tree: list[int] = field(default_factory=list)
    branch: list[int] = field(default_factory=list)
    source: list[int] = field(default_factory=list)
    target: list[int] = field(default_factory=list)
    tag_source: list[int] = field(default_factory=list)
    tag: list[int] = field(default_factory=list)

    def add(self, tree: Tree, relevant_id: int) -> None:
        """Append a tree's tokens and losses."""
        number = self.tree[-1] + 1 if self.tree else 0
        start = len(self.ids)
        self._extend(tree.prefix, 0, number, 0)
        if not tree.branches:
            for offset in range(len(tree.prefix) - 1):
                self.source.append(start + offset)
                self.target.append(tree.prefix[offset + 1])
        last = len(self.ids) - 1
        for index, branch in enumerate(tree.branches, start=1):
            first = len(self.ids)
            self._extend(branch.ids, len(tree.prefix), number, index)
            end = len(self.ids) - 1
            if branch.write:
                self.source.extend([last, *range(first, end + 1)])
                self.target.extend([*branch.ids, relevant_id])
            self.tag_source.append(end)
            self.tag.append(int(branch.relevant))

    def add_completions(self, prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> None:
        """Append what was sampled for a prompt; every token of each completion is a target."""
        number = self.tree[-1] + 1 if self.tree else 0
        self._extend(prompt, 0, number, 0)
        last = len(self.ids) - 1
        for index, completion in enumerate(completions, start=1):
            first = len(self.ids)
            # The last token is only predicted.
            self._extend(completion[:-1], len(prompt), number, index)
            self.source.extend([last, *range(first, len(self.ids))])
            self.target.extend(completion)

    def _extend(self, ids: Sequence[int], position: int, tree: int, branch: int) -> None:
        self.ids.extend(ids)
        self.positions.extend(range(position, position + len(ids)))
        self.tree.extend([tree] * len(ids))
        self.branch.extend([branch] * len(ids))


def pack(trees: Iterable[Tree], row_tokens: int, relevant_id: int) -> list[Row]:
    """Fill rows of at most ``row_tokens`` in the order given.

    A tree that exceeds a row loses its last branches; one that does not fit even so is left out.
    """
    open_rows: list[Row] = []
    done: list[Row] = []
    for given in trees:
        tree = given
        while len(tree) > row_tokens and tree.branches:
            tree = Tree(tree.prefix, tree.branches[:-1])
        # Without any branch left the query would be learnt as if it were domain text.
        lost = bool(given.branches) and not tree.branches
        if lost or len(tree) > row_tokens or not tree.prefix:
            continue
        home = next((r for r in open_rows if len(r.ids) + len(tree) <= row_tokens), None)
        if home is None:
            home = Row()
            open_rows.append(home)
            if len(open_rows) > 8:
                done.append(open_rows.pop(0))
        home.add(tree, relevant_id)
    return done + open_rows


@dataclass(frozen=True, slots=True)
class Collator:
    """Stacks rows into tensors of ``rows x width``, width the longest row."""

    pad_id: int

    def __call__(self, rows: Sequence[Row]) -> dict[str, torch.Tensor]:
        """Batch tensors; loss positions are flat indices into ``rows x width``."""
        width = max(len(r.ids) for r in rows)

        def padded(values: list[list[int]], fill: int) -> torch.Tensor:
            return torch.tensor([v + [fill] * (width - len(v)) for v in values])

        tree = padded([r.tree for r in rows], -1)
        branch = padded([r.branch for r in rows], 0)
        same_tree = tree[:, :, None] == tree[:, None, :]
        visible = (branch[:, None, :] == 0) | (branch[:, :, None] == branch[:, None, :])
        causal = torch.ones(width, width, dtype=torch.bool).tril()

        def flat(name: str) -> torch.Tensor:
            return torch.tensor(
                [at + i * width for i, row in enumerate(rows) for at in getattr(row, name)],
                dtype=torch.long,
            )

        return {
            "input_ids": padded([r.ids for r in rows], self.pad_id),
            "position_ids": padded([r.positions for r in rows], 0),
            "attention_mask": (same_tree & visible & causal)[:, None],
            "source": flat("source"),
            "target": torch.tensor([t for r in rows for t in r.target], dtype=torch.long),
            "tag_source": flat("tag_source"),
            "tag": torch.tensor([t for r in rows for t in r.tag], dtype=torch.long),
        }


def hidden_states(base: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Hidden states of a causal model on a packed batch, before the head.

    Args:
        base: with ``model`` and ``lm_head``, adapter inside.
        batch: as a :class:`Collator` makes it, on the model's device.

    Returns:
        (rows x width, hidden size), to be indexed by ``source`` and ``tag_source``.
    """
    found: torch.Tensor = base.model(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        position_ids=batch["position_ids"],
        use_cache=False,
    ).last_hidden_state
    return found.flatten(0, 1)
