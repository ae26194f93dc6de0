"""Which rows sequences have in common, and that to compute them once changes nothing."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.engine.worker.errors import NotApplicable
from service.engine.worker.shared_rows import LEAST_SAVED, Histories, SharedRows, Sharing

torch = pytest.importorskip("torch")

from service.engine.worker.shared_rows import close  # noqa: E402 - of tensors
from tests.support.vllm_parts import LlamaForCausalLM, Runner  # noqa: E402 - torch may not be there


def shared(histories: Histories, batch: Mapping[str, tuple[int, Sequence[int]]]) -> Sharing:
    """A step of sequences, each with how many tokens it has and those it goes on with."""
    starts = list(itertools.accumulate((len(new) for _, new in batch.values()), initial=0))
    tokens = [token for _, new in batch.values() for token in new]
    return histories.share(list(batch), [begin for begin, _ in batch.values()], starts, tokens)


def test_they_share_while_they_draw_the_same_and_never_again_once_they_differ() -> None:
    histories = Histories()
    shared(histories, {"a": (0, [5, 6]), "b": (0, [5, 6]), "c": (0, [5, 6])})
    same = shared(histories, {"a": (2, [8]), "b": (2, [8]), "c": (2, [9])})
    assert same == Sharing([0, 2], [0, 0, 1], [0, 2], [0, 0, 1])
    # All three draw the same again, but not after the same.
    later = shared(histories, {"a": (3, [1]), "b": (3, [1]), "c": (3, [1])})
    assert later == Sharing([0, 2], [0, 0, 1], [0, 2], [0, 0, 1])
    apart = shared(histories, {"a": (4, [1]), "b": (4, [2]), "c": (4, [1])})
    assert apart == Sharing([0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2])
    for length in (5, 6):
        alike = shared(histories, {"a": (length, [1]), "b": (length, [1]), "c": (length, [1])})
        assert alike.saved == 0


def test_a_prompt_in_pieces_shares_the_rows_of_one_step() -> None:
    histories = Histories()
    found = shared(histories, {"a": (0, [1, 2]), "b": (0, [1, 2, 3, 4])})
    assert found.source == [0, 1, 0, 1, 2, 3]
    # The rest of it was computed in another step, in another batch.
    assert shared(histories, {"a": (2, [3, 4]), "b": (4, [5])}).saved == 0


@dataclass(frozen=True)
class Move:
    """What a sequence does in a step: it goes on, begins anew, or comes with tokens cached."""

    tokens: tuple[int, ...]
    begin: int | None = None


moves = st.builds(
    Move,
    tokens=st.lists(st.integers(0, 1), min_size=1, max_size=4).map(tuple),
    begin=st.one_of(st.none(), st.none(), st.none(), st.just(0), st.integers(1, 4)),
)
steps = st.lists(
    st.lists(st.tuples(st.sampled_from("abcdef"), moves), max_size=6, unique_by=lambda one: one[0]),
    min_size=1,
    max_size=6,
)


@given(steps)
def test_rows_are_one_exactly_if_their_prefixes_and_histories_are(
    made: list[list[tuple[str, Move]]],
) -> None:
    histories, unique = Histories(), itertools.count()
    last: dict[str, list[Hashable]] = {}
    lengths: dict[str, int] = {}
    for number, batch in enumerate(made):
        now: dict[str, list[Hashable]] = {}
        names: list[str] = []
        begins: list[int] = []
        rows: list[tuple[Hashable, ...]] = []
        tokens: list[int] = []
        starts = [0]
        for name, move in batch:
            begin = lengths.get(name, 0) if move.begin is None else move.begin
            before = last.get(name, [])
            if begin == 0:
                before = []
            elif len(before) != begin:
                before = [("somewhere else", next(unique))]
                before += [None] * (begin - 1)
            so_far = list(before)
            for token in move.tokens:
                so_far.append((token, number))
                rows.append(tuple(so_far))
            now[name], lengths[name] = so_far, begin + len(move.tokens)
            names.append(name)
            begins.append(begin)
            tokens += move.tokens
            starts.append(len(tokens))
        last = now
        found = histories.share(names, begins, starts, tokens)
        assert [rows[found.kept[place]] for place in found.source] == rows
        assert [rows[row] for row in found.kept] == list(dict.fromkeys(rows))
        assert list(found.kept) == sorted(set(found.kept))
        ends = [rows[end - 1] for end in starts[1:]]
        assert [ends[found.requests_kept[place]] for place in found.request_source] == ends
        assert [ends[i] for i in found.requests_kept] == list(dict.fromkeys(ends))
        assert found.saved == len(rows) - len(set(rows))


class Worker(SharedRows):
    """A worker that the extension has been mixed into."""

    def __init__(self, model: LlamaForCausalLM | None = None) -> None:
        self.model_runner: Any = Runner(model or LlamaForCausalLM())

    @property
    def model(self) -> LlamaForCausalLM:
        found: LlamaForCausalLM = self.model_runner.model
        return found


def same(ours: Any, theirs: Any) -> bool:
    return bool(torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5))


PROMPTS = {"a": [1, 4, 2, 5], "b": [1, 4, 2, 5], "c": [1, 4, 2, 5], "d": [1, 7, 3], "e": [1, 7, 3]}
STEPS: list[dict[str, list[int]]] = [
    PROMPTS,
    {name: [6] for name in PROMPTS},
    {"a": [2], "b": [2], "c": [3], "d": [2], "e": [2]},
    # One leaves, others come, in another order.
    {"e": [9], "f": [1, 4, 2, 5], "c": [1], "b": [8], "a": [8], "g": [1, 4, 2, 5, 6]},
    {"f": [6], "g": [6], "a": [3], "b": [3], "c": [3], "e": [3]},
]


def test_hidden_states_logits_and_caches_are_those_of_the_models_own_pass() -> None:
    own, worker = Runner(LlamaForCausalLM()), Worker()
    worker.share_rows()
    for batch in STEPS:
        hidden, logits = worker.model_runner.step(batch)
        own_hidden, own_logits = own.step(batch)
        assert same(hidden, own_hidden)
        assert same(logits, own_logits)
        assert same(worker.model_runner.caches(), own.caches())
    seen, saved = worker.rows_shared()
    assert seen == sum(own.model.passed)
    # Of the first prompts six rows are left, and of the later ones and the two that still are the
    # same five less; three, two and one are not worth it.
    assert (saved, worker.rows_refused()) == (12 + 5, "")
    # The first prompts, and the first that sequences go on with, both ways.
    assert worker.model.passed == [18, 6, 5, 5, 13, 13 - 5, 6]


def test_the_head_is_computed_for_distinct_rows_alone() -> None:
    own, worker = Runner(LlamaForCausalLM()), Worker()
    worker.share_rows()
    batch = {name: [1, 4, 2, 5] for name in "abcd"}
    for runner in (own, worker.model_runner):
        runner.step(batch)
    assert own.model.headed == [4]
    assert worker.model.headed == [1]
    # Fewer saved than it is worth: all rows, so all heads.
    for runner in (own, worker.model_runner):
        hidden, logits = runner.step({"a": [1], "b": [2], "c": [1], "d": [1]})
        assert hidden.shape[0] == logits.shape[0] == 4
    assert worker.model.headed == [1, 4]


def test_other_hidden_states_than_the_steps_get_logits_of_their_own() -> None:
    worker = Worker()
    worker.share_rows()
    worker.model_runner.step({name: [1, 4, 2, 5] for name in "abc"})
    torch.manual_seed(1)
    hidden = torch.randn(5, 16)
    assert same(worker.model.compute_logits(hidden), worker.model.lm_head(hidden)[0])


def test_a_process_that_has_no_logits_goes_on_without() -> None:
    worker = Worker()
    model: Any = worker.model
    model.compute_logits = lambda hidden: None
    worker.share_rows()
    _, logits = worker.model_runner.step({name: [1, 4, 2, 5] for name in "abc"})
    assert logits is None


def test_a_step_that_would_save_little_is_the_models_own() -> None:
    worker = Worker()
    worker.share_rows()
    little = {"a": list(range(LEAST_SAVED - 1)), "b": [*range(LEAST_SAVED - 1), 9]}
    worker.model_runner.step(little)
    assert worker.model.passed == [2 * LEAST_SAVED - 1]
    assert worker.rows_shared() == (2 * LEAST_SAVED - 1, 0)
    enough = {"c": [*range(LEAST_SAVED), 8], "d": [*range(LEAST_SAVED), 9]}
    worker.model_runner.step(enough)
    assert worker.rows_shared()[1] == LEAST_SAVED


class Mixing(LlamaForCausalLM):
    """Each row gets something of all the others."""

    def embed(self, input_ids: Any) -> Any:
        own = super().embed(input_ids)
        return own + own.mean(0) * 3


def test_a_model_whose_rows_depend_on_each_other_is_found_out() -> None:
    own, worker = Runner(Mixing()), Worker(Mixing())
    worker.share_rows()
    for batch in STEPS:
        hidden, logits = worker.model_runner.step(batch)
        own_hidden, own_logits = own.step(batch)
        assert same(hidden, own_hidden)
        assert same(logits, own_logits)
        assert same(worker.model_runner.caches(), own.caches())
    assert "depend on each other" in worker.rows_refused()
    # The first batch as it is, shared, and as it is again; then no more than is asked for.
    assert worker.model.passed == [18, 6, 18, *own.model.passed[1:]]
    assert worker.model.headed == own.model.headed


def test_rows_that_belong_to_no_request_go_through_as_they_are() -> None:
    worker = Worker()
    worker.share_rows()
    own = LlamaForCausalLM()
    zeros = torch.zeros(12, dtype=torch.int64)
    # Before any request, and with those of the step before still there.
    for _ in range(2):
        worker.model.context.attn_metadata = None
        hidden = worker.model.forward(input_ids=zeros, positions=zeros)
        assert same(hidden, own.forward(zeros, zeros))
        assert worker.model.passed[-1] == 12
        worker.model_runner.step(PROMPTS)
    assert worker.rows_shared()[0] == 2 * 18


def test_embeddings_in_place_of_tokens_go_through_as_they_are() -> None:
    worker = Worker()
    worker.share_rows()
    batch = {name: [1, 4, 2, 5] for name in "abc"}
    worker.model_runner.step(batch)
    own = LlamaForCausalLM()
    zeros = torch.zeros(12, dtype=torch.int64)
    embedded = torch.randn(12, 16)
    worker.model.context.attn_metadata = None
    hidden = worker.model.forward(input_ids=zeros, positions=zeros, inputs_embeds=embedded)
    assert same(hidden, own.forward(zeros, zeros, embedded))


def test_a_pass_that_fails_leaves_nothing_behind() -> None:
    own, worker = Runner(LlamaForCausalLM()), Worker()
    worker.share_rows()
    for runner in (own, worker.model_runner):
        runner.step(PROMPTS)
    sharing = worker.shared_forward
    assert sharing is not None
    inner = sharing.inner

    def failing(**_: Any) -> Any:
        assert sharing.rows.source is not None
        raise RuntimeError("out of memory")

    sharing.inner = failing
    with pytest.raises(RuntimeError, match="out of memory"):
        worker.model_runner.step({name: [1, 2, 3, 4] for name in "fg"})
    assert sharing.rows.source is None
    assert sharing.rows.kept is None
    sharing.inner = inner
    batch = {name: [6] for name in PROMPTS}
    assert same(worker.model_runner.step(batch)[0], own.step(batch)[0])


def compiled(worker: Worker) -> None:
    worker.model_runner.vllm_config.model_config.enforce_eager = False


def adapted(worker: Worker) -> None:
    worker.model_runner.lora_config = object()


def speculating(worker: Worker) -> None:
    worker.model_runner.speculative_config = object()


def with_more_positions(worker: Worker) -> None:
    worker.model_runner.uses_mrope = True


def with_other_state(worker: Worker) -> None:
    layers = worker.model_runner.vllm_config.compilation_config.static_forward_context
    layers["mamba.0"] = SimpleNamespace()


def without_attention(worker: Worker) -> None:
    worker.model_runner.vllm_config.compilation_config.static_forward_context.clear()
    for layer in worker.model.model.layers:
        layer.self_attn.attn = torch.nn.Identity()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (compiled, "compiled"),
        (adapted, "adapters, speculation and positions"),
        (speculating, "adapters, speculation and positions"),
        (with_more_positions, "adapters, speculation and positions"),
        (with_other_state, "more than keys and values"),
        (without_attention, "more than keys and values"),
    ],
)
def test_what_is_not_known_to_be_right_is_left_alone(
    change: Callable[[Worker], None], reason: str
) -> None:
    worker = Worker()
    change(worker)
    with pytest.raises(NotApplicable, match=reason):
        worker.share_rows()
    assert not {"forward", "compute_logits"} & vars(worker.model).keys()
    assert not any("forward" in vars(module) for module in worker.model.modules())
    assert worker.rows_shared() == (0, 0)


def test_passes_are_close_if_they_differ_by_rounding_alone() -> None:
    torch.manual_seed(0)
    own = torch.randn(20, 16).bfloat16()
    assert close(own, own)
    assert close(own, (own * 1.01))
    # The first rows of sequences may be further apart, as long as they are few.
    few = own.clone()
    few[:4] *= 2
    assert close(own, few)
    few[:8] *= 2
    assert not close(own, few)
    assert not close(own, own * float("nan"))
    assert not close(own, own[:10])
