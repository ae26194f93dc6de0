"""What is added to vLLM's worker inside the engine core. It is imported there, without vLLM."""

from __future__ import annotations

from service.engine.exact_labels import ExactLabels
from service.engine.kernels import Kernels
from service.engine.watchdog import ParentWatch


class WorkerExtension(ParentWatch, ExactLabels, Kernels):
    """All of it, for vLLM's option ``worker_extension_cls``; called by ``collective_rpc``."""
