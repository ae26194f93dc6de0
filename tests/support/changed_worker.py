"""A worker's extension, imported in the engine core, that meets a vLLM with other attributes."""

from __future__ import annotations

from typing import Any

from service.engine.worker.extension import WorkerExtension
from tests.support.fake_vllm import View


class ChangedWorker(WorkerExtension):
    """Sees the runner without its batch, and its sampler with other numbers."""

    model_runner: Any

    def extend(self, labels: list[int]) -> dict[str, str]:
        runner = self.model_runner
        self.model_runner = View(
            runner,
            {
                "input_batch": None,
                "sampler.compute_logprobs": lambda own: lambda logits: own(logits) / 2,
            },
        )
        try:
            return super().extend(labels)
        finally:
            self.model_runner = runner
