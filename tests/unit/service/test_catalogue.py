from __future__ import annotations

from pathlib import Path

import pytest

from model_store.errors import DigestMismatch, InvalidVersion, UnknownVersion
from model_store.manifest import FilterSpec
from model_store.store import FolderSource, Store, pack_version
from service.candidates import Scored, Verdict
from service.catalogue import known_versions
from service.settings import Settings
from tests.support.model_versions import write_stub_version


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A store with the version ``main-1``, which has brands."""
    root = tmp_path / "models"
    folder = root / "main-1"
    plain = write_stub_version(folder)
    (folder / "brands.txt").write_text("dewalt\n\nblack & decker\n", encoding="utf-8")
    pack_version(
        folder,
        name="main-1",
        base=plain.base,
        weights=plain.weights,
        prompt=plain.prompt,
        decoding=plain.decoding,
        filters=FilterSpec(brands_file="brands.txt"),
    )
    return root


def names(root: Path, default: str = "main-1") -> list[str]:
    store = Store([FolderSource(root)], root.parent / "cache")
    settings = Settings(default_version=default, cache_dir=root.parent / "cache")
    return [version.name for version in known_versions(store, settings)]


def test_brands_of_the_version_are_guarded(root: Path) -> None:
    store = Store([FolderSource(root)], root.parent / "cache")
    (version,) = known_versions(store, Settings(default_version="main-1"))
    judged = version.filter.judge(
        "dewalt dril", [Scored("dewalt drill", 0.9), Scored("makita drill", 0.8)]
    )
    assert [one.verdict for one in judged] == [Verdict.ACCEPTED, Verdict.LOST_BRAND]


def test_brands_that_were_changed_are_refused(root: Path) -> None:
    (root / "main-1" / "brands.txt").write_text("makita\n", encoding="utf-8")
    with pytest.raises(DigestMismatch, match=r"brands\.txt"):
        names(root)


def test_a_broken_version_is_left_out_unless_it_is_the_default(root: Path) -> None:
    write_stub_version(root / "other-1")
    (root / "other-1" / "manifest.json").write_text("{")
    assert names(root) == ["main-1"]
    with pytest.raises(InvalidVersion):
        names(root, default="other-1")


def test_a_default_that_is_not_there_is_told(root: Path) -> None:
    with pytest.raises(UnknownVersion, match="main-1"):
        names(root, default="nobody")
