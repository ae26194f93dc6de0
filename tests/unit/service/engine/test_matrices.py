"""Which matrices are chosen, and that packed ones multiply as they should."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from service.engine import matrices  # noqa: E402 - torch may not be there
from service.engine.matrices import AUTOMATIC, ROWS, Choice, MatrixPlan, fastest  # noqa: E402
from service.engine.worker.errors import LayoutChanged, NotApplicable  # noqa: E402
from service.engine.worker.packed import PackedMatrices, pack  # noqa: E402

CONFIG = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2}
TOOK = {"bfloat16": [9.0, 60.0], "float32": [20.0, 30.0], "float16": [9.5, 18.0]}


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MatrixPlan:
    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(
        matrices, "timed", lambda _, kinds: {k: v for k, v in TOOK.items() if k in kinds}
    )
    return MatrixPlan(
        wanted="auto", model=tmp_path, digest="d", packable=True, cache=tmp_path / "c", threads=2
    )


def test_the_fastest_serves_and_vllms_own_where_nothing_may_be_replaced(plan: MatrixPlan) -> None:
    assert plan.choose() == Choice("float16", "timed", TOOK)
    assert replace(plan, packable=False).choose().matrices == "float32"
    assert fastest({}) == "bfloat16"
    assert fastest({"bfloat16": [10.0], "float16": [8.0]}) == "bfloat16"


@pytest.mark.parametrize(
    ("wanted", "packable", "serves", "dtype"),
    [
        ("int8", True, "int8", "float32"),
        ("int8", False, "float32", "float32"),
        ("float16", False, "float32", "float32"),
        ("bfloat16", False, "bfloat16", "bfloat16"),
    ],
)
def test_the_operator_decides(
    plan: MatrixPlan, wanted: matrices.Wanted, packable: bool, serves: str, dtype: str
) -> None:
    choice = replace(plan, wanted=wanted, packable=packable).choose()
    assert (choice.matrices, choice.source, choice.dtype) == (serves, "set", dtype)
    plan.remember(choice)  # as chosen with auto, else a later auto would take it
    assert plan.choose().source == "cached"


def test_a_choice_holds_for_its_model_processor_and_versions(
    plan: MatrixPlan, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan.remember(replace(plan.choose(), apart=0.002))
    assert plan.choose() == Choice("float16", "cached", TOOK, 0.002)
    for other in (replace(plan, digest="e"), replace(plan, threads=1)):
        assert other.choose().source == "timed"
    for name in ("_flags", "_versions", "processor"):
        with monkeypatch.context() as patch:
            patch.setattr(matrices, name, lambda: "another")
            assert plan.choose().source == "timed"
    (file,) = plan.cache.iterdir()
    file.write_text('{"matrices": "float8", "milliseconds": {}, "apart": null}')
    assert plan.choose().source == "timed"
    file.write_text("{")
    assert plan.choose().source == "timed"


def test_a_cache_that_cannot_be_written_keeps_nobody_from_serving(plan: MatrixPlan) -> None:
    plan.cache.write_text("a file, no folder")
    choice = plan.choose()
    plan.remember(choice)
    assert plan.choose() == choice


def test_every_candidate_is_timed_on_the_models_sizes() -> None:
    found = matrices.timed(CONFIG, [*AUTOMATIC, "int8"])
    assert {"bfloat16", "float32"} <= found.keys() <= {*AUTOMATIC, "int8"}
    assert all(len(times) == len(ROWS) and max(times) < 1e6 for times in found.values())
    sizes, layers = matrices._sizes(CONFIG | {"num_key_value_heads": 2, "intermediate_size": 48})
    assert (sizes, layers) == ([(64, 32), (32, 32), (96, 32), (32, 48)], 2)


def handed_over(bias: bool = True) -> Any:
    """A layer whose weight, of numbers of bfloat16, only its product knows."""
    torch.manual_seed(1)
    weight = (torch.randn(48, 32) / 6).bfloat16().float()
    return SimpleNamespace(
        input_size_per_partition=32,
        weight=torch.nn.Parameter(torch.empty(0), requires_grad=False),
        bias=torch.randn(48) if bias else None,
        cpu_linear=lambda rows, _, own: torch.nn.functional.linear(rows, weight, own),
    )


class Worker(PackedMatrices):
    def __init__(self, *layers: Any) -> None:
        model = SimpleNamespace(modules=lambda: layers)
        self.model_runner = SimpleNamespace(get_model=lambda: model)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("kind", "near"), [("float16", 1e-4), ("int8", 0.05)])
def test_packed_matrices_multiply_as_those_handed_over(kind: str, near: float, bias: bool) -> None:
    layer = handed_over(bias)
    rows = torch.randn(5, 32)
    expected = layer.cpu_linear(rows, layer.weight, layer.bias)
    worker = Worker(object(), layer)
    assert worker.pack_matrices(kind) == 1
    assert worker.matrices_packed
    found = layer.cpu_linear(rows, layer.weight, layer.bias)
    assert (found - expected).abs().max() < near
    assert expected.abs().max() > 1


def set_weight(weight: Any) -> Callable[[Any], None]:
    return lambda layer: setattr(layer, "weight", weight)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (set_weight(torch.zeros(48, 32, dtype=torch.bfloat16)), LayoutChanged),
        (lambda layer: delattr(layer, "input_size_per_partition"), LayoutChanged),
        (lambda layer: delattr(layer, "cpu_linear"), NotApplicable),
    ],
)
def test_matrices_of_another_kind_are_refused(
    change: Callable[[Any], None], error: type[Exception]
) -> None:
    layer = handed_over()
    change(layer)
    with pytest.raises(error):
        Worker(layer).pack_matrices("float16")


def test_weights_that_are_still_there_are_freed() -> None:
    layer = handed_over()
    layer.weight = torch.nn.Parameter(torch.randn(48, 32), requires_grad=False)
    Worker(layer).pack_matrices("float16")
    assert layer.weight.numel() == 0
    assert (
        pack("float16", torch.ones(8, 8))(torch.ones(2, 8), None, None).tolist() == [[8.0] * 8] * 2
    )
