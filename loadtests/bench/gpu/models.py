"""Bench versions of the shapes for a GPU."""

from __future__ import annotations

import sys

from loadtests.bench.gpu.floors import Precision
from loadtests.bench.gpu.shapes import SMOLLM2_135M, Shape
from loadtests.bench.versions import CANDIDATES, BenchVersions, link_weights, pack
from loadtests.processes import output
from model_store.materialise import materialise
from model_store.store import open_store

_WRITE_S = 3600.0


def version_name(shape: Shape, precision: Precision) -> str:
    """Name of the bench version of a shape in a precision."""
    return f"bench-{shape.name}-{precision}"


async def make(versions: BenchVersions, of: str, shape: Shape, precision: Precision) -> str:
    """Make the bench version of a shape; its name.

    The shape of the packaged base gets the weights of the version ``of``, the other shapes get
    random ones. All have that version's prompt and filters.

    Raises:
        ServerFailed: the weights could not be written.
        ModelStoreError: the version ``of`` is missing or damaged.
    """
    version = open_store().get(of)
    trained = materialise(version)
    target = versions.emptied(version_name(shape, precision))
    real = shape is SMOLLM2_135M
    if real and precision == "bf16":
        link_weights(trained, target)
    else:
        source = trained if real else trained / "tokenizer.json"
        await output(
            *(sys.executable, "-m", "loadtests.bench.gpu.weights", shape.name, precision),
            *(str(source), str(target)),
            timeout_s=_WRITE_S,
        )
    weights = f"the weights of {of}" if real else "random weights"
    description = f"The shape {shape.name} in {precision} with {weights}, for the benchmark."
    filters = version.manifest.filter.model_copy(update={"brands_file": None})
    pack(target, version.manifest, filters, CANDIDATES, description)
    return target.name
