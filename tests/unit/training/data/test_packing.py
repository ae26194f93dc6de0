from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch.nn import functional

from model_store.prompt import PromptFormat
from tests.support.model_versions import PROMPT, byte_tokenizer
from training.data.packing import Branch, Collator, Row, Tree, pack, tree_of
from training.data.pairs import QueryPairs, Scored

PAD = 0
RELEVANT = 60


@pytest.fixture(scope="module")
def model() -> Any:
    """A tiny random Llama in float32, the architecture of the real base."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        tie_word_embeddings=True,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


TREES = (
    Tree(
        (1, 10, 11, 12, 2),
        (
            Branch((20, 21, 22), relevant=True, write=True),
            Branch((23,), relevant=True, write=False),
            Branch((24, 25), relevant=False, write=False),
        ),
    ),
    Tree((1, 13, 2), (Branch((26, 27, 28, 29), relevant=False, write=False),)),
    Tree((30, 31, 32)),
)


def logits_of(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """As the trainer runs it."""
    with torch.no_grad():
        hidden = model.model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            position_ids=batch["position_ids"],
            use_cache=False,
        ).last_hidden_state
        return model.lm_head(hidden).flatten(0, 1)  # type: ignore[no-any-return]


def alone(model: Any, ids: tuple[int, ...]) -> torch.Tensor:
    """Logits of one ordinary sequence, nothing packed."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize("row_tokens", [32, 11, 12], ids=["one row", "rows of one", "padded rows"])
def test_a_packed_row_computes_what_the_single_sequences_compute(
    model: Any, row_tokens: int
) -> None:
    rows = pack(TREES, row_tokens, RELEVANT)
    assert len(rows) == (1 if row_tokens == 32 else 2)
    batch = Collator(PAD)(rows)
    packed = logits_of(model, batch)
    width = batch["input_ids"].shape[1]
    compared = 0
    for number, row in enumerate(rows):
        at = 0
        while at < len(row.ids):
            # Trees are recognised by their first tokens.
            tree = next(t for t in TREES if tuple(row.ids[at : at + len(t.prefix)]) == t.prefix)
            prefix = alone(model, tree.prefix)
            start = number * width + at
            torch.testing.assert_close(packed[start : start + len(tree.prefix)], prefix)
            first = start + len(tree.prefix)
            for branch in tree.branches:
                expected = alone(model, tree.prefix + branch.ids)[len(tree.prefix) :]
                torch.testing.assert_close(packed[first : first + len(branch.ids)], expected)
                first += len(branch.ids)
                compared += 1
            at += len(tree)
    assert compared == 4


def test_the_loss_is_that_of_the_single_sequences(model: Any) -> None:
    batch = Collator(PAD)(pack(TREES, 32, RELEVANT))
    packed = logits_of(model, batch)
    found = functional.cross_entropy(packed[batch["source"]], batch["target"], reduction="sum")
    written = alone(model, (1, 10, 11, 12, 2, 20, 21, 22))
    domain = alone(model, (30, 31, 32))
    expected = functional.cross_entropy(
        torch.cat([written[4:8], domain[:2]]),
        torch.tensor([20, 21, 22, RELEVANT, 31, 32]),
        reduction="sum",
    )
    torch.testing.assert_close(found, expected)


def test_a_branch_cannot_see_its_neighbours(model: Any) -> None:
    """The same branch beside other neighbours, and after another tree, computes the same."""
    branch = Branch((20, 21, 22), relevant=True, write=True)
    first = Tree((1, 10, 2), (Branch((40, 41), relevant=True, write=True), branch))
    second = Tree((1, 10, 2), (Branch((50, 51), relevant=True, write=True), branch))
    for trees in ((first,), (TREES[1], first)):
        one = logits_of(model, Collator(PAD)(pack(trees, 64, RELEVANT)))
        other = logits_of(model, Collator(PAD)(pack([*trees[:-1], second], 64, RELEVANT)))
        torch.testing.assert_close(one[-3:], other[-3:])


def test_positions_losses_and_tags_by_hand() -> None:
    row = pack(TREES[:2], 32, RELEVANT)[0]
    #          tree 0: prefix      branch 1    2   branch 3  tree 1: prefix  branch 1
    assert row.ids == [1, 10, 11, 12, 2, 20, 21, 22, 23, 24, 25, 1, 13, 2, 26, 27, 28, 29]
    assert row.positions == [0, 1, 2, 3, 4, 5, 6, 7, 5, 5, 6, 0, 1, 2, 3, 4, 5, 6]
    assert row.tree == [0] * 11 + [1] * 7
    assert row.branch == [0] * 5 + [1] * 3 + [2] + [3] * 2 + [0] * 3 + [1] * 4
    # Only the first branch is learnt: REWRITE (4) predicts its first token, its last (7) the tag.
    assert row.source == [4, 5, 6, 7]
    assert row.target == [20, 21, 22, RELEVANT]
    # Every branch is tagged at its last token.
    assert row.tag_source == [7, 8, 10, 17]
    assert row.tag == [1, 1, 0, 0]


def test_domain_text_is_learnt_token_by_token() -> None:
    row = pack([Tree((30, 31, 32)), Tree((33, 34))], 32, RELEVANT)[0]
    assert row.source == [0, 1, 3]
    assert row.target == [31, 32, 34]
    assert row.tag_source == []


def test_the_mask_by_hand() -> None:
    tree = Tree((1, 2), (Branch((3,), relevant=True, write=True), Branch((4, 5), True, True)))
    rows = pack([tree], 8, RELEVANT)
    rows.append(pack([Tree((6, 7, 8, 9, 10, 11))], 8, RELEVANT)[0])
    batch = Collator(PAD)(rows)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, PAD], [6, 7, 8, 9, 10, 11]]
    assert batch["attention_mask"].shape == (2, 1, 6, 6)
    assert batch["attention_mask"][0, 0].int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 1, 0, 1, 0, 0],
        [1, 1, 0, 1, 1, 0],
        # Padding sees itself: a row of the mask without any 1 would give NaN.
        [0, 0, 0, 0, 0, 1],
    ]
    assert batch["attention_mask"][1, 0].int().tolist() == torch.ones(6, 6).tril().int().tolist()
    # Loss positions are flat: those of the second row begin at 6.
    assert batch["source"].tolist() == [1, 2, 1, 3, 4, 6, 7, 8, 9, 10]
    assert batch["tag_source"].tolist() == [2, 4]


def test_rows_are_filled_in_order_and_never_over() -> None:
    trees = [Tree((n, n, n)) for n in range(1, 10)]
    rows = pack(trees, 8, RELEVANT)
    assert [row.ids[::3] for row in rows] == [[1, 2], [3, 4], [5, 6], [7, 8], [9]]
    assert all(len(row.ids) <= 8 for row in rows)


def test_every_tree_is_in_exactly_one_row() -> None:
    generator = torch.Generator().manual_seed(0)
    sizes = torch.randint(2, 30, (300,), generator=generator).tolist()
    trees = [Tree((number + 100,) * size) for number, size in enumerate(sizes)]
    rows = pack(trees, 32, RELEVANT)
    assert sorted(token for row in rows for token in row.ids) == [
        number + 100 for number, size in enumerate(sizes) for _ in range(size)
    ]
    assert all(len(row.ids) <= 32 for row in rows)


def test_a_tree_that_exceeds_a_row_loses_its_last_branches() -> None:
    rows = pack([TREES[0]], 9, RELEVANT)
    assert rows[0].ids == [1, 10, 11, 12, 2, 20, 21, 22, 23]
    assert rows[0].tag == [1, 1]


@pytest.mark.parametrize(
    "tree", [TREES[0], Tree((1,) * 8), Tree(())], ids=["no branch fits", "too long", "empty"]
)
def test_what_does_not_fit_is_left_out(tree: Tree) -> None:
    # A query that lost all of its rewrites must not be learnt as domain text either.
    assert pack([tree], 7, RELEVANT) == []


def test_nothing_packs_to_nothing() -> None:
    assert pack([], 32, RELEVANT) == []
    assert len(Row().ids) == 0


def test_the_tree_of_a_querys_pairs() -> None:
    prompts = PromptFormat(byte_tokenizer(), PROMPT)

    def scored(text: str) -> Scored:
        return Scored(text, "x", 1.0, 0.0)

    pairs = QueryPairs(
        "ab", [scored("c"), scored("far too long")], [scored("de")], [scored("f"), scored("")]
    )
    tree = tree_of(pairs, prompts, max_rewrite_tokens=4)
    assert list(tree.prefix) == prompts.rewrite_prompt("ab")
    assert [(b.relevant, b.write) for b in tree.branches] == [
        (True, True), (True, False), (False, False), (False, False),
    ]  # fmt: skip
    assert [prompts.decode(b.ids) for b in tree.branches] == ["c", "de", "f", ""]
    # With the tag a rewrite of three tokens is four long, as many as may be decoded.
    assert max(len(b.ids) for b in tree.branches) == 3
    for branch in tree.branches[:3]:
        assert [*tree.prefix, *branch.ids] == prompts.tag_prompt("ab", branch.ids)
    assert len(tree) == len(tree.prefix) + 2 + 3 + 2 + 1
