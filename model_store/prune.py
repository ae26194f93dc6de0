"""Materialised folders of versions that no source holds any more."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from model_store.errors import ModelStoreError
from model_store.files import files_under, writing
from model_store.manifest import RECORD
from model_store.materialise import locked, materialised_dir
from model_store.store import Store


@dataclass(frozen=True, slots=True)
class Leftover:
    """A materialised folder that no version of the sources uses."""

    folder: Path
    bytes: int


def leftovers(store: Store, cache_dir: Path) -> list[Leftover]:
    """Folders of versions, or of contents of a version, that are in no source.

    Versions that cannot be read keep their folders: the manifest may be repaired.

    Raises:
        ModelStoreError: a source cannot be listed.
    """
    wanted: set[str] = set()
    unread: list[str] = []
    for name in store.names():
        try:
            wanted.add(materialised_dir(store.get(name), cache_dir).name)
        except ModelStoreError:
            unread.append(f"{name}-")
    root = cache_dir / "models"
    return [
        Leftover(folder, sum(path.stat().st_size for _, path in files_under(folder)))
        for folder in (sorted(root.iterdir()) if root.is_dir() else ())
        if (folder / RECORD).is_file()
        and folder.name not in wanted
        and not any(folder.name.startswith(name) for name in unread)
    ]


def remove(leftover: Leftover) -> None:
    """Remove a folder; readers never take a part of it for the whole.

    Raises:
        CannotWrite: the cache directory is read-only.
    """
    with locked(leftover.folder), writing(leftover.folder):
        (leftover.folder / RECORD).unlink(missing_ok=True)
        shutil.rmtree(leftover.folder)
