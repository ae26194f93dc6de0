"""Runs inside the engine core: multiplies a model's matrices with FBGEMM instead of vLLM's kernels.

A CPU without instructions for bfloat16 emulates it, five to eight times as slowly as FBGEMM
multiplies float32 rows with weights that are kept in float16. A bfloat16 number of ordinary size is
also one of float16, so such a product is as exact as one in float32, for half of its memory.

The engine computes in float32. Neither torch nor vLLM is imported: vLLM has loaded torch before.
"""

from __future__ import annotations

import ctypes
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from service.engine.worker.errors import LayoutChanged, NotApplicable
from service.engine.worker.kernels import width_of

Multiply = Callable[[Any, Any, Any], Any]
"""As vLLM's ``cpu_linear``: rows (rows, columns in), weight and bias to (rows, columns out)."""

PACKED = ("float16", "int8")


def pack(kind: str, weight: Any, bias: Any = None) -> Multiply:
    """A product with a copy of ``weight``; its arguments ``weight`` and ``bias`` are not read.

    Args:
        kind: one of :data:`PACKED`; ``int8`` has a scale for each row of the weight, and quantises
            the rows that it multiplies too.
        weight: float32, contiguous, (columns out, columns in).
        bias: float32, (columns out,); ``None`` for none.

    Raises:
        RuntimeError: torch has no such kernel for this processor.
    """
    torch = sys.modules["torch"]
    quantized = torch.ops.quantized
    if kind == "float16":
        held = quantized.linear_prepack_fp16(weight, bias)
        product = quantized.linear_dynamic_fp16.default
        return lambda rows, _weight, _bias: product(rows, held)
    scales = weight.abs().amax(1).clamp(min=1e-12).double() / 127
    zeros = torch.zeros(len(scales), dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch will move this function one day
        whole = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
    held = quantized.linear_prepack(whole, bias)
    product = quantized.linear_dynamic.default
    # Activations in seven bits where the processor adds pairs of products in 16.
    return lambda rows, _weight, _bias: product(rows, held, True)


class PackedMatrices:
    """Mixed into vLLM's worker by its option ``worker_extension_cls``."""

    model_runner: Any
    """The worker's own."""
    matrices_packed: bool

    def pack_matrices(self, kind: str) -> int:
        """From now on all matrices are multiplied by FBGEMM; vLLM's copies are freed one by one.

        Args:
            kind: one of :data:`PACKED`.

        Returns:
            How many there are.

        Raises:
            NotApplicable: the model has no matrices of vLLM's kernels for CPUs.
            LayoutChanged, RuntimeError: one cannot be packed; the model is then half changed.
        """
        layers = [
            module
            for module in self.model_runner.get_model().modules()
            if getattr(module, "cpu_linear", None) is not None
        ]
        if not layers:
            raise NotApplicable("no matrix is multiplied by vLLM's kernel for CPUs")
        for layer in layers:
            layer.cpu_linear = pack(kind, _weight_of(layer), getattr(layer, "bias", None))
            if not hasattr(layer, "embedding_dim"):  # else it is read as an embedding, too
                layer.weight.data = layer.weight.new_empty(0)
        self.matrices_packed = True
        _return_freed_memory()
        return len(layers)


def _return_freed_memory() -> None:
    """Give the memory of the float32 weights back: allocators keep what was freed in pieces."""
    process = ctypes.CDLL(None)
    for name, arguments in (("MallocExtension_ReleaseFreeMemory", ()), ("malloc_trim", (0,))):
        with suppress(AttributeError):  # another allocator
            getattr(process, name)(*arguments)


def _weight_of(layer: Any) -> Any:
    """A layer's weight, (columns out, columns in), float32.

    Raises:
        LayoutChanged: it is not in float32, or of an unknown size.
    """
    weight, width = layer.weight, width_of(layer)
    if str(weight.dtype) != "torch.float32":
        raise LayoutChanged("a matrix is not in float32")
    if weight.numel():
        return weight.detach().contiguous()
    if width is None:
        raise LayoutChanged("a matrix is of an unknown size")
    # vLLM has handed it over to oneDNN and kept no copy: its products with unit vectors are it.
    unit = weight.new_zeros(width, width)
    unit.fill_diagonal_(1)
    return layer.cpu_linear(unit, weight, None).t().contiguous()
