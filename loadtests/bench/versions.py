"""Bench versions: the same weights as another version, with decoding that makes peers comparable.

Peers can only be compared if they do equal work, so all of them draw every candidate at one
temperature, such as a service would choose: vLLM's HTTP API takes no more than one for the
completions of a prompt. What they draw differs by chance and is equal in length on average; tokens
are reported beside each figure. A temperature near 0 would give all peers the same tokens, and
would flatter the service: it computes what candidates have in common only once, and near 0 all
candidates of a query are the same.

The weights are the merged ones of the version, linked and not copied, so that nothing is merged
again for each number of candidates.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from model_store.manifest import DecodingSpec, Manifest, WeightsSpec
from model_store.materialise import materialise
from model_store.store import Store, StoredVersion, open_store, pack_version

TEMPERATURE = 0.7
"""See above."""
_CARD = "README.md"
_WEIGHTS = (".safetensors", ".json")


@dataclass(frozen=True, slots=True)
class BenchVersions:
    """A folder of bench versions.

    Attributes:
        source: the folder, for ``REQUERY_MODEL_SOURCES``.
        cache: where they are materialised, so that the user's own cache is left alone.
    """

    source: Path
    cache: Path

    @classmethod
    def under(cls, folder: Path) -> BenchVersions:
        """In a folder of the benchmark's."""
        return cls(folder / "versions", folder / "cache")

    @property
    def settings(self) -> dict[str, str]:
        """What a service, or any peer, has to be told to find them."""
        return {"REQUERY_MODEL_SOURCES": str(self.source), "REQUERY_CACHE_DIR": str(self.cache)}

    def find(self, name: str) -> tuple[Manifest, Path]:
        """Manifest and materialised weights of one that was made.

        Raises:
            ModelStoreError: there is none, or it cannot be used.
        """
        version = open_store([str(self.source)], self.cache).get(name)
        return version.manifest, materialise(version, self.cache)

    def make(self, of: str, candidates: Iterable[int], store: Store | None = None) -> list[str]:
        """Versions with as many candidates, made anew; their names, in order.

        Args:
            of: name of the version whose weights, prompt and filters they have.
            candidates: of each version.
            store: where that one is; default: the packaged ones and ``REQUERY_MODEL_SOURCES``.

        Raises:
            ModelStoreError: it cannot be used.
        """
        version = (store or open_store()).get(of)
        folder = materialise(version)
        return [self._make(version, folder, n) for n in candidates]

    def _make(self, version: StoredVersion, weights: Path, candidates: int) -> str:
        name = bench_name(candidates)
        target = self.source / name
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for file in sorted(weights.iterdir()):
            if file.suffix in _WEIGHTS and file.name != "requery.json":
                link(file, target / file.name)
        brands = version.manifest.filter.brands_file
        if brands is not None:
            shutil.copyfile(version.folder(self.cache) / brands, target / brands)
        (target / _CARD).write_text(
            f"# {name}\n\nThe weights of {version.name}, for the benchmark only.\n",
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
                temperatures=(TEMPERATURE,) * candidates,
                max_tokens=manifest.decoding.max_tokens,
            ),
            filters=manifest.filter,
            description=f"{version.name} with {candidates} candidates, for the benchmark.",
        )
        return name


def bench_name(candidates: int) -> str:
    """Name of the bench version with so many candidates."""
    return f"bench-n{candidates}"


def link(file: Path, target: Path) -> None:
    """A second name for a file; a copy where there can be none."""
    try:
        os.link(file, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(file, target)
