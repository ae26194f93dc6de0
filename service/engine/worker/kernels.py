"""Runs inside the engine core: has oneDNN compile its matrix kernels at the start.

On a CPU oneDNN compiles a kernel for each number of rows that a matrix meets, and keeps as many as
its bound allows (see :mod:`service.engine.loading`). Compiled while serving, each kernel costs a
request ten times the time of the product itself, and the process grows for hours; compiled at the
start, the cache is full before the first query comes.

Only objects that vLLM hands over are used: neither torch nor vLLM is imported.
"""

from __future__ import annotations

import os
from typing import Any

from service.engine.worker.errors import NotApplicable

CAPACITY = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
"""The environment variable that bounds oneDNN's cache, in kernels."""


class Kernels:
    """Mixed into vLLM's worker by its option ``worker_extension_cls``."""

    model_runner: Any
    """The worker's own."""
    matrices_packed = False

    def make_kernels(self) -> int:
        """Multiply each size of matrix with 1, 2, 3... rows until the cache of kernels is full.

        Returns:
            Products made.

        Raises:
            NotApplicable: the cache has no bound, or the matrices are not oneDNN's.
            RuntimeError, TypeError: the matrices take other inputs.
        """
        if self.matrices_packed:
            raise NotApplicable("the matrices are FBGEMM's, which compiles no kernels")
        capacity = int(os.environ.get(CAPACITY, "0"))
        sizes = matrices(self.model_runner.get_model())
        if not capacity or not sizes:
            raise NotApplicable("no matrix is oneDNN's, or its cache has no bound")
        rows = capacity // len(sizes)
        # Few rows last: they are the commonest, and the least recently used are dropped first.
        for count in range(rows, 0, -1):
            for (width, _), matrix in sizes.items():
                matrix.cpu_linear(matrix.weight.new_zeros(count, width), matrix.weight, None)
        return rows * len(sizes)


def matrices(model: Any) -> dict[tuple[int, int], Any]:
    """One of vLLM's layers for each (columns in, columns out) that a model's matrices have."""
    found: dict[tuple[int, int], Any] = {}
    for layer in model.modules():
        if getattr(layer, "cpu_linear", None) is None:
            continue
        width = width_of(layer)
        out = getattr(layer, "output_size_per_partition", layer.weight.shape[0])
        if width is not None:
            found.setdefault((width, out), layer)
    return found


def width_of(layer: Any) -> int | None:
    """How many columns go into vLLM's layer, whose weight may have been handed over to oneDNN."""
    return getattr(layer, "input_size_per_partition", getattr(layer, "embedding_dim", None))
