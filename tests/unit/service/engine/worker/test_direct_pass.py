"""A Llama's pass without the way to its kernels, on a tiny one with parts named as vLLM's."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from service.engine.worker.errors import LayoutChanged, NotApplicable

torch = pytest.importorskip("torch")

from service.engine.worker.direct_pass import DirectPasses  # noqa: E402 - torch may not be there
from service.engine.worker.shared_rows import SharedRows  # noqa: E402
from tests.support.vllm_parts import LlamaForCausalLM, RMSNorm, Runner, kernels  # noqa: E402

PROMPTS = {"a": [1, 4, 2, 5], "b": [1, 4, 2, 5], "c": [1, 4, 2, 5], "d": [1, 7, 3]}
STEPS: list[dict[str, list[int]]] = [
    PROMPTS,
    {"a": [6, 2], "b": [6, 2], "c": [6, 2], "d": [6, 8]},
    {"d": [2], "b": [2], "e": [1, 4, 2, 5, 9], "f": [1, 4, 2, 5, 9], "a": [3]},
    {name: [1] for name in "abdef"},
]
APART: list[dict[str, list[int]]] = [
    {"a": [1, 4, 2, 5], "b": [2, 4, 2], "c": [3]},
    {"c": [1], "b": [1], "d": [5, 5, 5, 5, 5]},
    {"a": [3], "d": [9], "b": [2], "c": [2]},
]
"""Nothing to share in any of them."""


Begin = Callable[["Worker"], None]


class Worker(SharedRows, DirectPasses):
    """A worker that the extension has been mixed into."""

    def __init__(self, change: Callable[[LlamaForCausalLM], object] = lambda _: None) -> None:
        self.model = LlamaForCausalLM()
        change(self.model)
        self.model_runner: Any = Runner(self.model)


@pytest.fixture
def operators(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What the workers of a test find as vLLM's operators."""
    made = kernels()
    monkeypatch.setattr(torch.ops, "_C", made)
    return made


@pytest.fixture
def begin(operators: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Begin:
    """Shares rows and passes directly."""

    def extend(worker: Worker) -> None:
        context = SimpleNamespace(get_forward_context=lambda: worker.model.context)
        monkeypatch.setitem(sys.modules, "vllm.forward_context", context)
        worker.share_rows()
        worker.pass_directly()

    return extend


def same(ours: Any, theirs: Any) -> bool:
    return bool(torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5))


def alike(worker: Worker, own: Runner, batch: dict[str, list[int]]) -> bool:
    """Whether a step of both gives the same hidden states, logits, keys and values."""
    hidden, logits = worker.model_runner.step(batch)
    own_hidden, own_logits = own.step(batch)
    caches = same(worker.model_runner.caches(), own.caches())
    return caches and same(hidden, own_hidden) and same(logits, own_logits)


@pytest.mark.parametrize("steps", [STEPS, APART], ids=["shared", "apart"])
def test_all_is_as_in_the_models_own_pass(begin: Begin, steps: list[dict[str, list[int]]]) -> None:
    own, worker = Runner(LlamaForCausalLM()), Worker()
    begin(worker)
    for batch in steps:
        assert alike(worker, own, batch)
    assert worker.direct_pass_refused() == worker.rows_refused() == ""
    assert (worker.rows_shared()[1] > 0) is (steps is STEPS)
    # The first batch both ways; after that the model's own pass is not called again.
    assert worker.model.passed == own.model.passed[:1]


def wrong_norm(operators: SimpleNamespace) -> None:
    def forgetful(x: Any, residual: Any, weight: Any, epsilon: float) -> None:
        add(x, residual, torch.ones_like(weight), epsilon)

    add = operators.fused_add_rms_norm.default
    operators.fused_add_rms_norm.default = forgetful


def wrong_first_norm(operators: SimpleNamespace) -> None:
    operators.rms_norm.default = lambda out, x, weight, epsilon: out.copy_(x)


def wrong_activation(operators: SimpleNamespace) -> None:
    operators.silu_and_mul.default = lambda out, x: out.copy_(x[:, out.shape[1] :])


def wrong_attention(operators: SimpleNamespace) -> None:
    def sees_itself_alone(query: Any, keys: Any, values: Any, out: Any, *_: Any) -> None:
        out.zero_()

    operators.cpu_attention_with_kv_cache.default = sees_itself_alone


WRONG = [wrong_norm, wrong_first_norm, wrong_activation, wrong_attention]


@pytest.mark.parametrize("change", WRONG)
@pytest.mark.parametrize("steps", [STEPS, APART], ids=["shared", "apart"])
def test_a_wrong_kernel_is_noticed_at_the_first_pass(
    begin: Begin,
    operators: SimpleNamespace,
    change: Callable[[SimpleNamespace], None],
    steps: list[dict[str, list[int]]],
) -> None:
    own, worker = Runner(LlamaForCausalLM()), Worker()
    change(operators)
    begin(worker)
    for batch in steps:
        assert alike(worker, own, batch)
    assert "gives other numbers" in worker.direct_pass_refused()
    # Rows are shared all the same.
    assert worker.rows_refused() == ""
    assert (worker.rows_shared()[1] > 0) is (steps is STEPS)


def missing(operators: SimpleNamespace) -> None:
    del operators.silu_and_mul


def of_another_signature(operators: SimpleNamespace) -> None:
    def refuses(*_: Any) -> None:
        raise RuntimeError("_C::rotary_embedding() is missing value for argument 'inverse'")

    operators.rotary_embedding.default = refuses


def with_more_arguments(operators: SimpleNamespace) -> None:
    operators.rms_norm.default = lambda out, x, weight, epsilon, more: None


@pytest.mark.parametrize("change", [missing, of_another_signature, with_more_arguments])
def test_a_kernel_that_cannot_be_called_keeps_nobody_from_an_answer(
    begin: Begin,
    operators: SimpleNamespace,
    change: Callable[[SimpleNamespace], None],
) -> None:
    own, worker = Runner(LlamaForCausalLM()), Worker()
    change(operators)
    begin(worker)
    for batch in STEPS:
        assert alike(worker, own, batch)
    assert "vLLM's kernels are others" in worker.direct_pass_refused()


def test_layers_that_keep_their_keys_in_blocks_of_their_own_are_found_out(
    begin: Begin,
) -> None:
    """As where some see all and some the last tokens: each kind has its metadata."""
    worker = Worker()
    begin(worker)
    assert worker.direct_pass is not None
    worker.direct_pass._own = lambda **_: "own"
    worker.model.context.attn_metadata = {
        each.layer_name: object() for each in worker.model.attentions()
    }
    zeros = torch.zeros(3, dtype=torch.int64)
    for _ in range(2):
        assert worker.model.forward(input_ids=zeros, positions=zeros) == "own"
    assert worker.direct_pass_refused().endswith("layers have blocks of their own")


def test_caches_are_looked_up_again_where_others_are_bound(begin: Begin) -> None:
    own, worker = Runner(LlamaForCausalLM()), Worker()
    begin(worker)
    assert alike(worker, own, STEPS[0])
    before = worker.model_runner.caches()
    for runner in (own, worker.model_runner):
        # The second layer's alone: the first is not enough to look at.
        *_, attention = runner.model.attentions()
        attention.kv_cache = attention.kv_cache.clone()
    for batch in STEPS[1:]:
        assert alike(worker, own, batch)
    assert not same(worker.model_runner.caches()[1], before[1])


@pytest.mark.parametrize("metadata", [None, [{}]], ids=["none", "several"])
def test_without_metadata_of_the_usual_kind_the_models_own_pass_is_used(
    begin: Begin, metadata: Any
) -> None:
    worker = Worker()
    begin(worker)
    asked = []

    def own(**given: Any) -> Any:
        asked.append(given)
        return "own"

    assert worker.direct_pass is not None
    worker.direct_pass._own = own
    worker.model.context.attn_metadata = metadata
    zeros = torch.zeros(3, dtype=torch.int64)
    assert worker.model.forward(input_ids=zeros, positions=zeros, inputs_embeds=None) == "own"
    assert [sorted(given) for given in asked] == [["input_ids", "inputs_embeds", "positions"]]


def test_embeddings_in_place_of_tokens_take_the_models_own_pass(
    begin: Begin,
) -> None:
    own, worker = Runner(LlamaForCausalLM()), Worker()
    begin(worker)
    for batch in APART:
        assert alike(worker, own, batch)
    ids, places = torch.tensor([1, 1, 1, 1]), torch.tensor([5, 6, 4, 3])
    embedded = torch.randn(4, 16)
    found = worker.model.forward(input_ids=ids, positions=places, inputs_embeds=embedded)
    assert same(found, own.model.forward(ids, places, embedded))
    assert worker.model.passed[-1] == 4


def test_rows_must_be_shared_first() -> None:
    worker = Worker()
    with pytest.raises(NotApplicable, match="rows are not shared"):
        worker.pass_directly()
    assert worker.direct_pass_refused() == ""


class Subclass(RMSNorm):
    pass


def first(model: LlamaForCausalLM) -> Any:
    return model.model.layers[0]


def last(model: LlamaForCausalLM) -> Any:
    return model.model.layers[-1]


def renamed(module: Any, name: str = "Other") -> None:
    module.__class__ = type(name, (type(module),), {})


def impl(model: LlamaForCausalLM, **changes: Any) -> None:
    vars(last(model).self_attn.attn.impl).update(changes)


def without_final_norm(model: LlamaForCausalLM) -> None:
    model.model.norm = torch.nn.Identity()


UNKNOWN: list[tuple[str, Callable[[LlamaForCausalLM], object]]] = [
    ("only LlamaForCausalLM", renamed),
    ("only LlamaDecoderLayer", lambda model: renamed(last(model))),
    ("only LlamaAttention", lambda model: renamed(last(model).self_attn)),
    ("only LlamaMLP", lambda model: renamed(last(model).mlp)),
    ("only SiluAndMul", lambda model: renamed(last(model).mlp.act_fn)),
    ("only RotaryEmbedding", lambda model: renamed(last(model).self_attn.rotary_emb)),
    ("only CPUAttentionBackendImpl", lambda model: renamed(last(model).self_attn.attn.impl)),
    ("only RMSNorm", lambda model: setattr(last(model), "input_layernorm", Subclass())),
    ("only RMSNorm", lambda model: setattr(last(model), "post_attention_layernorm", Subclass())),
    ("Identity is not known", without_final_norm),
    ("kernel for CPUs", lambda model: delattr(last(model).mlp.down_proj, "cpu_linear")),
    ("kernel for CPUs", lambda model: setattr(first(model).self_attn.o_proj, "cpu_linear", None)),
    ("divided", lambda model: setattr(first(model).self_attn.qkv_proj, "tp_size", 2)),
    ("divided", lambda model: setattr(model.model.embed_tokens, "tp_size", 2)),
    ("quantised", lambda model: impl(model, kv_cache_dtype="fp8")),
    ("quantised", lambda model: setattr(first(model).self_attn.attn, "query_quant", object())),
    ("sinks or slopes", lambda model: impl(model, sinks=torch.zeros(4))),
    ("sinks or slopes", lambda model: impl(model, alibi_slopes=torch.zeros(4))),
    ("library of its own", lambda model: impl(model, use_zentorch_sdpa=True)),
    ("a part of its columns", lambda model: setattr(model.model.norm, "has_weight", False)),
    (
        "a part of its columns",
        lambda model: setattr(last(model).input_layernorm, "variance_size_override", 8),
    ),
    ("no attribute 'embed_tokens'", lambda model: delattr(model.model, "embed_tokens")),
    ("no attribute 'sinks'", lambda model: delattr(first(model).self_attn.attn.impl, "sinks")),
    ("no attribute 'num_heads'", lambda model: delattr(first(model).self_attn.attn, "num_heads")),
    ("no attribute 'variance_eps", lambda model: delattr(model.model.norm, "variance_epsilon")),
    ("no attribute 'is_neox", lambda m: delattr(first(m).self_attn.rotary_emb, "is_neox_style")),
]


@pytest.mark.parametrize(("reason", "change"), UNKNOWN)
def test_a_model_of_other_parts_is_left_as_it_was(
    begin: Begin, reason: str, change: Callable[[LlamaForCausalLM], object]
) -> None:
    worker = Worker(change)
    with pytest.raises((NotApplicable, LayoutChanged, AttributeError), match=reason):
        begin(worker)
    assert worker.direct_pass is None
    assert worker.direct_pass_refused() == ""
    # Rows are shared by the model's own pass: a bound method, not one of ours.
    assert worker.shared_forward is not None
    assert vars(worker.shared_forward)["inner"].__self__ is worker.model


def test_layers_beside_those_of_the_decoder_are_not_known(begin: Begin) -> None:
    beside: Any = torch.nn.Module()
    beside.kv_cache, beside.impl = torch.zeros(1), object()
    worker = Worker(lambda model: model.add_module("beside", beside))
    layers = worker.model_runner.vllm_config.compilation_config.static_forward_context
    layers["beside"] = beside
    with pytest.raises(NotApplicable, match="further attention layers"):
        begin(worker)
    assert worker.direct_pass is None
