"""What the hardware allows: no step can be shorter than its bytes or its operations take.

One decoding step reads every weight once, whatever the number of rows, and the keys and values of
all rows; it does two operations for each weight and row. So

    bytes      = linear parameters * bytes each + head parameters * 2
                 + rows * context * (keys and values of a token) * 2
    operations = 2 * rows * (linear + head parameters)
                 + 4 * rows * context * layers * heads * head size
    floor      = max(bytes / bandwidth, operations / peak)

Head, keys and values are bfloat16 in either precision; the operations of the layers' matrices
count at the peak of theirs, the others at that of bfloat16. Embeddings (one row for each token),
norms and activations are left out, and so are launches: nothing can be faster than a floor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from loadtests.bench.gpu.shapes import Shape

Precision = Literal["bf16", "fp8"]
BYTES: dict[Precision, int] = {"bf16": 2, "fp8": 1}
"""Of a weight in the layers' matrices."""
_BF16_BYTES = 2


@dataclass(frozen=True, slots=True)
class Peaks:
    """A GPU by its data sheet.

    Attributes:
        bandwidth: of its memory, bytes a second.
        bf16, fp8: operations a second of dense matrix products.
    """

    bandwidth: float
    bf16: float
    fp8: float

    def of(self, precision: Precision) -> float:
        """Operations a second in a precision."""
        return self.bf16 if precision == "bf16" else self.fp8


@dataclass(frozen=True, slots=True)
class Floor:
    """Least seconds of something.

    Attributes:
        by_bytes: if only memory took time.
        by_operations: if only arithmetic did.
    """

    by_bytes: float
    by_operations: float

    @property
    def seconds(self) -> float:
        """Of both, the longer."""
        return max(self.by_bytes, self.by_operations)


def step(
    shape: Shape, precision: Precision, peaks: Peaks, *, rows: int, context: float, new: int = 1
) -> Floor:
    """Floor of one step of a batch.

    Args:
        shape: of the model.
        precision: of the matrices of its layers.
        peaks: of the GPU.
        rows: sequences in the batch.
        context: tokens that each has, those of this step included, on average.
        new: tokens of each that this step computes: 1 when decoding, the prompt when it is read.
            Logits are made for the last one only.
    """
    cached = rows * context * shape.kv_values_per_token * _BF16_BYTES
    read = shape.linear_parameters * BYTES[precision] + shape.head_parameters * _BF16_BYTES + cached
    linear = 2 * rows * new * shape.linear_parameters
    # A token of a prompt looks at half of it on average.
    seen = context if new == 1 else context / 2
    attention = 4 * rows * new * seen * shape.layers * shape.heads * shape.head_dim
    head = 2 * rows * shape.head_parameters
    return Floor(
        read / peaks.bandwidth, linear / peaks.of(precision) + (attention + head) / peaks.bf16
    )


def miss(
    shape: Shape,
    precision: Precision,
    peaks: Peaks,
    *,
    rows: int,
    prompt: float,
    generated: float,
) -> float:
    """Least seconds of a batch of misses: the prompts in one step, then a step for each token.

    Args:
        shape: of the model.
        precision: of the matrices of its layers.
        peaks: of the GPU.
        rows: sequences, which is candidates times queries.
        prompt: tokens of each prompt. Candidates of a query share theirs only in whole blocks,
            which few prompts fill: each is counted.
        generated: tokens of each sequence; the first comes out of the step that reads the prompt.
    """
    whole = max(1, round(prompt))
    total = step(shape, precision, peaks, rows=rows, context=whole, new=whole).seconds
    for token in range(1, max(1, round(generated))):
        total += step(shape, precision, peaks, rows=rows, context=whole + token).seconds
    return total
