"""The labels' logits in float32, on a tiny model with the same parts as one of vLLM's."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from service.engine.worker.errors import NotApplicable

torch = pytest.importorskip("torch")

from service.engine.worker.exact_labels import (  # noqa: E402 - torch may not be there
    ExactLabels,
    LabelHead,
    agree,
    with_exact_labels,
)

HIDDEN, VOCABULARY = 64, 50
LABELS = [7, 41]


class Processor:
    """As vLLM's ``LogitsProcessor``: cap, then scale."""

    def __init__(self, scale: float = 1.0, soft_cap: float | None = None) -> None:
        self.scale = scale
        self.soft_cap = soft_cap

    def __call__(self, logits: Any) -> Any:
        if self.soft_cap is not None:
            logits = torch.tanh(logits / self.soft_cap) * self.soft_cap
        return logits * self.scale


class Model:
    """The end of a language model in bfloat16."""

    def __init__(self, *, bias: bool = False, known: bool = True, **processor: Any) -> None:
        torch.manual_seed(0)
        weight = torch.randn(VOCABULARY, HIDDEN).bfloat16()
        self.lm_head: Any = SimpleNamespace(weight=weight, tp_size=1)
        if bias:
            self.lm_head.bias = 3 * torch.randn(VOCABULARY).bfloat16()
        self.logits_processor: Any = Processor(**processor)
        self._factor = 1.0 if known else 0.5

    def compute_logits(self, hidden: Any) -> Any:
        weight, bias = self.lm_head.weight, getattr(self.lm_head, "bias", None)
        return self.logits_processor(
            torch.nn.functional.linear(hidden * self._factor, weight, bias)
        )

    def in_float64(self, hidden: Any) -> Any:
        """What the logits of the labels should be."""
        rows = self.lm_head.weight[LABELS].double()
        logits = hidden.double() @ rows.T
        if hasattr(self.lm_head, "bias"):
            logits = logits + self.lm_head.bias[LABELS].double()
        return self.logits_processor(logits)


def worker(model: Any) -> ExactLabels:
    """A worker that the extension has been mixed into."""
    made = ExactLabels()
    made.model_runner = SimpleNamespace(get_model=lambda: model)
    return made


def states(rows: int = 9) -> Any:
    """Hidden states whose logits are large enough for bfloat16 to round them to eighths."""
    torch.manual_seed(1)
    return (2.5 * torch.randn(rows, HIDDEN)).bfloat16()


@pytest.mark.parametrize(
    "options",
    [{}, {"bias": True}, {"scale": 0.25}, {"soft_cap": 30.0}, {"scale": 2.0, "bias": True}],
)
def test_labels_are_exact_and_all_else_is_as_the_model_has_it(options: dict[str, Any]) -> None:
    model, hidden = Model(**options), states()
    before = model.compute_logits(hidden)
    worker(model).compute_labels_exactly(LABELS)
    after = model.compute_logits(hidden)
    assert after.dtype is torch.float32
    expected = model.in_float64(hidden)
    assert torch.allclose(after[:, LABELS].double(), expected, rtol=1e-5, atol=1e-4)
    # The model's own are not near enough for this test to pass without being mended.
    assert not torch.allclose(before[:, LABELS].double(), expected, rtol=1e-5, atol=1e-4)
    others = [token for token in range(VOCABULARY) if token not in LABELS]
    assert torch.equal(after[:, others], before[:, others].float())


def test_a_row_is_the_same_alone_and_in_any_batch() -> None:
    model, hidden = Model(), states()
    worker(model).compute_labels_exactly(LABELS)
    together = model.compute_logits(hidden)[:, LABELS]
    alone = torch.cat([model.compute_logits(row[None])[:, LABELS] for row in hidden])
    assert torch.allclose(together, alone, rtol=1e-6, atol=1e-6)


def test_a_process_that_has_no_logits_goes_on_without() -> None:
    head = LabelHead.of(Model(), LABELS)
    assert with_exact_labels(lambda _hidden: None, head)(states()) is None
    assert not agree(lambda _hidden: None, head, states())


def sharded(model: Model) -> None:
    model.lm_head.tp_size = 2


def headless(model: Model) -> None:
    model.lm_head = SimpleNamespace()


def packed(model: Model) -> None:
    model.lm_head.weight = torch.empty(0, dtype=torch.bfloat16)


def quantised(model: Model) -> None:
    model.lm_head.weight = torch.zeros(VOCABULARY, HIDDEN, dtype=torch.int8)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (sharded, "divided among several devices"),
        (headless, "no lm_head"),
        (packed, "quantised or packed"),
        (quantised, "quantised or packed"),
    ],
)
def test_a_model_that_is_not_understood_is_left_alone(change: Any, reason: str) -> None:
    model = Model()
    change(model)
    with pytest.raises(NotApplicable, match=reason):
        worker(model).compute_labels_exactly(LABELS)
    assert "compute_logits" not in vars(model)


def test_a_model_that_scales_its_states_is_found_out() -> None:
    model = Model(known=False)
    with pytest.raises(NotApplicable, match="a way of its own"):
        worker(model).compute_labels_exactly(LABELS)
    assert "compute_logits" not in vars(model)


def test_a_bias_that_is_not_that_of_the_head_is_found_out() -> None:
    model = Model()
    ordinary = model.compute_logits
    model.compute_logits = lambda hidden: ordinary(hidden) + 0.5  # type: ignore[method-assign]
    with pytest.raises(NotApplicable, match="a way of its own"):
        worker(model).compute_labels_exactly(LABELS)


def test_the_extension_is_imported_without_torch_and_without_vllm() -> None:
    code = (
        "import sys, service.engine.worker.extension;"
        "print(sorted({'torch', 'vllm', 'numpy'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
