"""What is added to vLLM's worker inside the engine core. It is imported there, without vLLM.

Every part leans on private attributes of vLLM. It is tried against the plain path when it is added
or on the first batch, and left out if it fails or differs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from service.engine.worker.direct_pass import DirectPasses
from service.engine.worker.errors import NotApplicable
from service.engine.worker.exact_labels import ExactLabels
from service.engine.worker.kernels import Kernels
from service.engine.worker.label_logits import LabelLogits
from service.engine.worker.packed import PackedMatrices
from service.engine.worker.parent_watch import ParentWatch
from service.engine.worker.shared_rows import SharedRows


class WorkerExtension(
    ParentWatch, PackedMatrices, ExactLabels, LabelLogits, SharedRows, DirectPasses, Kernels
):
    """All parts, for vLLM's option ``worker_extension_cls``; called by ``collective_rpc``."""

    faults: dict[str, str]
    """Why a part that is made for this model and device was left out, by its name."""

    def extend(self, labels: list[int]) -> dict[str, str]:
        """Add every part that the model and the device allow.

        Args:
            labels: ids of the two labels, RELEVANT first.

        Returns:
            Why a part was left out, by its name.
        """
        self.faults = {}
        left_out = {}
        parts: dict[str, Callable[[], object]] = {
            "kernels": self.make_kernels,
            "exact_labels": partial(self.compute_labels_exactly, labels),
            "label_logits": partial(self.report_labels_alone, labels),
            "shared_rows": self.share_rows,
            "direct_pass": self.pass_directly,
        }
        for name, add in parts.items():
            try:
                add()
            except NotApplicable as reason:
                left_out[name] = str(reason)
            except Exception as error:  # noqa: BLE001 - whatever vLLM has changed, it serves
                self.faults[name] = left_out[name] = f"{type(error).__name__}: {error}"
        return left_out

    def given_up(self) -> dict[str, str]:
        """Parts that vLLM's layout does not allow, and why; call it after the first batches."""
        found = self.faults | {
            "label_logits": self.faults.get("label_logits") or self.labels_refused(),
            "shared_rows": self.faults.get("shared_rows") or self.rows_refused(),
            "direct_pass": self.faults.get("direct_pass") or self.direct_pass_refused(),
        }
        return {name: reason for name, reason in found.items() if reason}
