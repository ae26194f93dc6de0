"""What is added to vLLM's worker inside the engine core. It is imported there, without vLLM."""

from __future__ import annotations

from service.engine.worker.direct_pass import DirectPasses
from service.engine.worker.exact_labels import ExactLabels
from service.engine.worker.kernels import Kernels
from service.engine.worker.label_logits import LabelLogits
from service.engine.worker.parent_watch import ParentWatch
from service.engine.worker.shared_rows import SharedRows


class WorkerExtension(ParentWatch, ExactLabels, LabelLogits, SharedRows, DirectPasses, Kernels):
    """All of it, for vLLM's option ``worker_extension_cls``; called by ``collective_rpc``."""

    def extend(self, labels: list[int]) -> dict[str, str]:
        """Add everything that the model and the device allow.

        Args:
            labels: ids of the two labels, RELEVANT first.

        Returns:
            Why a part was left out, by its name; empty for what was added.
        """
        self.end_with_parent()
        self.make_kernels()
        return {
            "exact_labels": self.compute_labels_exactly(labels),
            "label_logits": self.report_labels_alone(labels),
            "shared_rows": self.share_rows(),
            "direct_pass": self.pass_directly(),
        }

    def given_up(self) -> dict[str, str]:
        """Why a part was taken back once it had been tried, by its name."""
        refused = {"shared_rows": self.rows_shared()[2], "direct_pass": self.passed_directly()}
        return {name: reason for name, reason in refused.items() if reason}
