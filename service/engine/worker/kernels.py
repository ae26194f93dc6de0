"""Runs inside the engine core: oneDNN's code for matrices, made at the start instead of on the way.

On a CPU oneDNN makes code for each number of rows that a matrix meets, and keeps what its bound
allows (see :mod:`service.engine.loading`). Made on the way, each costs some shopper ten times the
time of the product itself, and the process grows for hours; made at the start, the cache is full
before the first query comes.

Only what vLLM hands over is used: neither torch nor vLLM is imported.
"""

from __future__ import annotations

import os
from typing import Any

CAPACITY = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"
"""The environment variable that bounds oneDNN's cache, in kernels."""


class Kernels:
    """Mixed into vLLM's worker by its option ``worker_extension_cls``."""

    model_runner: Any
    """The worker's own."""

    def make_kernels(self) -> int:
        """Multiply each size of matrix with 1, 2, 3... rows until the cache of kernels is full.

        Returns:
            Products made; 0 if the cache has no bound here, or the matrices are not oneDNN's, or
            take other inputs: then kernels are made on the way, and the engine starts all the same.
        """
        capacity = int(os.environ.get(CAPACITY, "0"))
        sizes = matrices(self.model_runner.get_model())
        if not sizes:
            return 0
        rows = capacity // len(sizes)
        # Few rows last: they are the commonest, and the least recently used are dropped first.
        try:
            for count in range(rows, 0, -1):
                for (width, _), matrix in sizes.items():
                    matrix.cpu_linear(matrix.weight.new_zeros(count, width), matrix.weight, None)
        except (RuntimeError, TypeError):
            return 0
        return rows * len(sizes)


def matrices(model: Any) -> dict[tuple[int, int], Any]:
    """One of vLLM's layers for each (columns in, columns out) that a model's matrices have."""
    found: dict[tuple[int, int], Any] = {}
    for layer in model.modules():
        if getattr(layer, "cpu_linear", None) is None:
            continue
        # A linear layer has handed its weight over to oneDNN: only its sizes are left.
        width = getattr(layer, "input_size_per_partition", getattr(layer, "embedding_dim", None))
        out = getattr(layer, "output_size_per_partition", layer.weight.shape[0])
        if width is not None:
            found.setdefault((width, out), layer)
    return found
