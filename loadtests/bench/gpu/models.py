"""Bench versions of the shapes that are measured on a GPU."""

from __future__ import annotations

import asyncio
import shutil
import sys
from pathlib import Path

from loadtests.bench.gpu.floors import Precision
from loadtests.bench.gpu.shapes import SMOLLM2_135M, Shape
from loadtests.bench.peer import PeerFailed
from loadtests.bench.plans import CANDIDATES
from loadtests.bench.versions import TEMPERATURE, BenchVersions, link
from model_store.manifest import DecodingSpec, WeightsSpec
from model_store.materialise import materialise
from model_store.store import open_store, pack_version

_FILES = (".safetensors", ".json")


def version_name(shape: Shape, precision: Precision) -> str:
    """Name of the bench version of a shape in a precision."""
    return f"bench-{shape.name}-{precision}"


async def make(versions: BenchVersions, of: str, shape: Shape, precision: Precision) -> str:
    """The bench version of a shape, made anew; its name.

    The shape of the base that Requery comes with gets the weights of the version ``of``; the others
    get random ones. All have that version's prompt and filters.

    Raises:
        PeerFailed: the weights could not be written.
        ModelStoreError: the version ``of`` cannot be used.
    """
    version = open_store().get(of)
    trained = materialise(version)
    name = version_name(shape, precision)
    target = versions.source / name
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    real = shape is SMOLLM2_135M
    if real and precision == "bf16":
        for file in sorted(trained.iterdir()):
            if file.suffix in _FILES and file.name != "requery.json":
                link(file, target / file.name)
    else:
        await _write(shape, precision, trained if real else trained / "tokenizer.json", target)
    weights = f"{of}'s" if real else "random"
    (target / "README.md").write_text(
        f"# {name}\n\nThe shape of {shape.name} with {weights} weights, for the benchmark only.\n",
        encoding="utf-8",
    )
    manifest = version.manifest
    pack_version(
        target,
        name=name,
        base=manifest.base,
        weights=WeightsSpec(kind="full"),
        prompt=manifest.prompt,
        decoding=DecodingSpec(
            temperatures=(TEMPERATURE,) * CANDIDATES, max_tokens=manifest.decoding.max_tokens
        ),
        filters=manifest.filter.model_copy(update={"brands_file": None}),
        description=f"{shape.name}, {weights} weights, {precision}, for the benchmark.",
    )
    return name


async def _write(shape: Shape, precision: Precision, source: Path, target: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "loadtests.bench.gpu.weights", shape.name, precision, str(source), str(target)),
    )
    try:
        if await process.wait():
            raise PeerFailed(f"the weights of {shape.name} in {precision} could not be written")
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
