"""All that is added to the worker, on a tiny model with the same parts as one of vLLM's."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from service.engine.worker.extension import WorkerExtension  # noqa: E402 - torch may not be there
from tests.support.vllm_parts import LlamaForCausalLM, Runner, kernels  # noqa: E402

LABELS = [7, 3]
PROMPTS = {name: [1, 4, 2, 5] for name in "abc"}


class Worker(WorkerExtension):
    def __init__(self) -> None:
        self.model = LlamaForCausalLM()
        self.model_runner: Any = Runner(self.model)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    made = Worker()
    context = SimpleNamespace(get_forward_context=lambda: made.model.context)
    monkeypatch.setattr(torch.ops, "_C", kernels())
    monkeypatch.setitem(sys.modules, "vllm.forward_context", context)
    return made


def test_all_parts_are_added_and_work_together(worker: Worker) -> None:
    own = Runner(LlamaForCausalLM())
    # The tiny head has no processor, and nothing bounds oneDNN's cache: all else is added.
    left_out = worker.extend(LABELS)
    assert sorted(left_out) == ["exact_labels", "kernels"]
    assert "logits_processor" in left_out["exact_labels"]
    for batch in (PROMPTS, {name: [6, 2, 1] for name in "abc"}):
        for ours, theirs in zip(worker.model_runner.step(batch), own.step(batch), strict=True):
            assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-5)
    assert worker.given_up() == {}
    assert worker.rows_shared() == (21, 14)


def test_exact_labels_are_those_of_rows_that_are_shared(worker: Worker) -> None:
    vars(worker.model)["logits_processor"] = SimpleNamespace(scale=1.0, soft_cap=None)
    assert "exact_labels" not in worker.extend(LABELS)
    _, logits = worker.model_runner.step(PROMPTS)
    assert worker.model.headed[-1] == 1
    assert logits.dtype is torch.float32
    assert logits.shape[0] == 3
    assert torch.equal(logits[0], logits[2])


def test_without_rows_to_share_nothing_is_passed_directly(worker: Worker) -> None:
    worker.model_runner.vllm_config.model_config.enforce_eager = False
    left_out = worker.extend(LABELS)
    assert left_out["shared_rows"] == "the model is compiled"
    assert left_out["direct_pass"] == "rows are not shared"
    assert "label_logits" not in left_out
    # Neither is a fault of vLLM's.
    assert worker.given_up() == {}


def test_parts_that_no_batch_reaches_are_told(worker: Worker) -> None:
    worker.extend(LABELS)
    assert sorted(worker.given_up()) == ["direct_pass", "shared_rows"]
