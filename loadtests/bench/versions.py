"""Bench versions: the weights of another version, with decoding that makes peers comparable.

Peers must do equal work, so all of them draw every candidate at one temperature, a usual one: the
completions of a prompt share one in vLLM's HTTP API. The draws differ by chance and have equal
lengths on average; tokens are reported beside each figure. A temperature near 0 would give all
peers the same tokens and would flatter the service: it computes common tokens of candidates only
once, and near 0 all candidates of a query are equal.

The merged weights are linked, not copied or merged again for each number of candidates.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from model_store.manifest import DecodingSpec, FilterSpec, Manifest, WeightsSpec
from model_store.materialise import materialise
from model_store.store import (
    CACHE_VARIABLE,
    SOURCES_VARIABLE,
    Store,
    StoredVersion,
    open_store,
    pack_version,
)

CANDIDATES = 4
"""Candidates of each miss."""
TEMPERATURE = 0.7
"""Of every candidate; the module says why."""
_WEIGHTS = (".safetensors", ".json")


@dataclass(frozen=True, slots=True)
class BenchVersions:
    """A folder of bench versions.

    Attributes:
        source: the folder, for ``REQUERY_MODEL_SOURCES``.
        cache: where they are materialised, apart from the user's own cache.
    """

    source: Path
    cache: Path

    @classmethod
    def under(cls, folder: Path) -> BenchVersions:
        """Both folders below one."""
        return cls(folder / "versions", folder / "cache")

    @classmethod
    def of_environment(cls) -> BenchVersions:
        """The folders named by :attr:`settings` in the environment."""
        return cls(Path(os.environ[SOURCES_VARIABLE]), Path(os.environ[CACHE_VARIABLE]))

    @property
    def settings(self) -> dict[str, str]:
        """Environment variables for the service and the other peers."""
        return {SOURCES_VARIABLE: str(self.source), CACHE_VARIABLE: str(self.cache)}

    def find(self, name: str) -> tuple[Manifest, Path]:
        """Manifest and materialised weights of a bench version.

        Raises:
            ModelStoreError: it does not exist, or is damaged.
        """
        version = open_store([str(self.source)], self.cache).get(name)
        return version.manifest, materialise(version, self.cache)

    def make(self, of: str, candidates: Iterable[int], store: Store | None = None) -> list[str]:
        """Make a version for each number of candidates; their names, in order.

        Args:
            of: version with their weights, prompt and filters.
            candidates: number for each version.
            store: holds that version; default: packaged ones and ``REQUERY_MODEL_SOURCES``.

        Raises:
            ModelStoreError: that version is missing or damaged.
        """
        version = (store or open_store()).get(of)
        folder = materialise(version)
        return [self._make(version, folder, n) for n in candidates]

    def _make(self, version: StoredVersion, weights: Path, candidates: int) -> str:
        name = bench_name(candidates)
        target = self.emptied(name)
        link_weights(weights, target)
        brands = version.manifest.filter.brands_file
        if brands is not None:
            shutil.copyfile(version.folder(self.cache) / brands, target / brands)
        description = f"{version.name} with {candidates} candidates, for the benchmark."
        pack(target, version.manifest, version.manifest.filter, candidates, description)
        return name

    def emptied(self, name: str) -> Path:
        """An empty folder for a version."""
        target = self.source / name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        return target


def pack(
    folder: Path, like: Manifest, filters: FilterSpec, candidates: int, description: str
) -> None:
    """Make the weights of a folder a version of that name, with base and prompt of another."""
    (folder / "README.md").write_text(f"# {folder.name}\n\n{description}\n", encoding="utf-8")
    pack_version(
        folder,
        name=folder.name,
        base=like.base,
        weights=WeightsSpec(kind="full"),
        prompt=like.prompt,
        decoding=DecodingSpec(
            temperatures=(TEMPERATURE,) * candidates, max_tokens=like.decoding.max_tokens
        ),
        filters=filters,
        description=description,
    )


def link_weights(weights: Path, target: Path) -> None:
    """Give the files of a materialised version a second name in another folder."""
    for file in sorted(weights.iterdir()):
        if file.suffix in _WEIGHTS and file.name != "requery.json":
            link(file, target / file.name)


def bench_name(candidates: int) -> str:
    """Name of the bench version with this number of candidates."""
    return f"bench-n{candidates}"


def link(file: Path, target: Path) -> None:
    """A hard link to a file, or a copy where links do not work."""
    try:
        os.link(file, target)
    except OSError:  # another file system
        shutil.copyfile(file, target)
