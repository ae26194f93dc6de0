"""Sources, look-up, verifying, adding and packing."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from uuid import uuid4

import fsspec
import pytest

from model_store import files
from model_store.errors import CannotWrite, DigestMismatch, InvalidVersion, UnknownVersion
from model_store.manifest import BaseSpec, DecodingSpec, SpellingSpec, WeightsSpec
from model_store.remote import RemoteFolder, RemoteUnreadable
from model_store.store import (
    MANIFEST,
    PACKAGED,
    FolderSource,
    RemoteSource,
    Store,
    default_cache_dir,
    open_source,
    open_store,
    pack_version,
)
from tests.support.model_versions import PROMPT, write_stub_version
from tests.support.redis_server import free_port


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A source with the version "one"."""
    write_stub_version(tmp_path / "source" / "one")
    return tmp_path / "source"


@pytest.fixture
def store(root: Path, tmp_path: Path) -> Store:
    return Store([FolderSource(root)], tmp_path / "cache")


@pytest.fixture
def base(tmp_path: Path) -> BaseSpec:
    """A base that is here, with the right digest."""
    path = tmp_path / "base.gguf"
    path.write_bytes(b"weights")
    return BaseSpec(source=str(path), sha256=files.sha256_of(path), license="Apache-2.0")


def rewrite_manifest(folder: Path, **changes: object) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(content | changes))


class TestLookUp:
    def test_a_version_is_found_by_name(self, store: Store) -> None:
        version = store.get("one")
        assert version.name == "one"
        assert [found.name for found in store.list()] == ["one"]

    def test_an_unknown_name_lists_the_known_ones(self, store: Store) -> None:
        with pytest.raises(UnknownVersion, match="'two'; known: one"):
            store.get("two")

    @pytest.mark.parametrize("name", ["../source/one", "/etc", "..", "", "one/", "ONE", "one\n"])
    def test_a_name_that_is_a_path_finds_nothing(self, store: Store, name: str) -> None:
        with pytest.raises(UnknownVersion):
            store.get(name)

    def test_the_first_source_wins(self, root: Path, tmp_path: Path) -> None:
        other = tmp_path / "other"
        write_stub_version(other / "one", seed=7)
        write_stub_version(other / "two")
        store = Store([FolderSource(other), FolderSource(root)], tmp_path / "cache")
        assert store.get("one").source.label == str(other)
        assert store.names() == ["one", "two"]

    def test_a_source_that_does_not_exist_is_empty(self, tmp_path: Path) -> None:
        assert Store([FolderSource(tmp_path / "none")], tmp_path).names() == []

    def test_a_folder_must_be_called_like_its_version(self, root: Path, store: Store) -> None:
        (root / "one").rename(root / "renamed")
        with pytest.raises(InvalidVersion, match="called 'one'"):
            store.get("renamed")

    def test_a_bad_manifest_names_the_field(self, root: Path, store: Store) -> None:
        rewrite_manifest(root / "one", weights={"kind": "magic"})
        with pytest.raises(InvalidVersion, match=r"weights\.kind"):
            store.get("one")

    @pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00"])
    def test_a_manifest_that_is_no_manifest(self, root: Path, store: Store, text: str) -> None:
        (root / "one" / MANIFEST).write_text(text)
        with pytest.raises(InvalidVersion, match=r"manifest\.json"):
            store.get("one")

    def test_a_linked_folder_is_refused(self, root: Path, store: Store, tmp_path: Path) -> None:
        (root / "one").rename(tmp_path / "elsewhere")
        (root / "one").symlink_to(tmp_path / "elsewhere")
        assert store.names() == []
        with pytest.raises(InvalidVersion, match="symbolic link"):
            store.get("one")

    def test_half_copied_versions_are_not_seen(self, root: Path, store: Store) -> None:
        shutil.copytree(root / "one", root / ".tmp-two-1234")
        assert store.names() == ["one"]


class TestVerify:
    def test_a_good_version_is_ok(self, root: Path, store: Store, base: BaseSpec) -> None:
        write_stub_version(root / "two", base=base)
        report = store.verify("two")
        assert report.ok
        assert report.checked == 4

    def test_a_changed_byte_is_found(self, root: Path, store: Store, base: BaseSpec) -> None:
        write_stub_version(root / "two", base=base)
        path = root / "two" / "adapter_model.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        report = store.verify("two")
        assert len(report.problems) == 1
        assert "adapter_model.safetensors: its bytes are not the ones listed" in report.problems[0]

    def test_a_missing_and_a_shortened_file_are_found(self, root: Path, store: Store) -> None:
        (root / "one" / "README.md").unlink()
        (root / "one" / "adapter_config.json").write_text("{}")
        problems = "\n".join(store.verify("one").problems)
        assert "README.md: is missing" in problems
        assert "adapter_config.json: has 2 bytes" in problems

    def test_a_missing_base_says_what_to_do(self, store: Store) -> None:
        report = store.verify("one")
        assert any("does not exist: put it there" in problem for problem in report.problems)

    def test_a_changed_base_is_found(self, root: Path, store: Store, base: BaseSpec) -> None:
        write_stub_version(root / "two", base=base)
        Path(base.source).write_bytes(b"other weights")
        report = store.verify("two")
        assert any("not the one this version was trained on" in p for p in report.problems)

    def test_files_that_nobody_listed_are_named(
        self, root: Path, store: Store, base: BaseSpec
    ) -> None:
        write_stub_version(root / "two", base=base)
        (root / "two" / "notes").mkdir()
        (root / "two" / "notes" / "x.txt").write_text("x")
        report = store.verify("two")
        assert report.unlisted == ("notes/x.txt",)
        assert not report.ok

    def test_a_file_swapped_for_a_link_is_refused(self, root: Path, store: Store) -> None:
        file = root / "one" / "README.md"
        file.rename(root / "card.md")
        file.symlink_to(root / "card.md")
        assert any("symbolic link" in problem for problem in store.verify("one").problems)
        with pytest.raises(DigestMismatch, match="symbolic link"):
            store.get("one").folder(root / "cache")


class TestAdd:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        write_stub_version(tmp_path / "made" / "two")
        return tmp_path / "made" / "two"

    def test_a_version_is_copied_whole(self, store: Store, root: Path, folder: Path) -> None:
        added = store.add(folder)
        assert store.get("two").digest == added.digest
        assert sorted(p.name for p in (root / "two").iterdir()) == sorted(
            p.name for p in folder.iterdir()
        )
        assert sorted(p.name for p in root.iterdir()) == ["one", "two"]

    def test_the_folder_is_named_like_the_version(
        self, store: Store, root: Path, folder: Path
    ) -> None:
        store.add(folder.rename(folder.with_name("whatever")))
        assert (root / "two" / MANIFEST).is_file()

    def test_adding_twice_is_harmless(self, store: Store, folder: Path) -> None:
        assert store.add(folder).digest == store.add(folder).digest

    def test_a_version_never_changes(self, store: Store, tmp_path: Path) -> None:
        write_stub_version(tmp_path / "made" / "one", seed=9)
        before = store.get("one").digest
        with pytest.raises(InvalidVersion, match="choose a new name"):
            store.add(tmp_path / "made" / "one")
        assert store.get("one").digest == before

    def test_pickled_weights_are_refused(self, store: Store, root: Path, folder: Path) -> None:
        (folder / "adapter_model.bin").write_bytes(pickle.dumps({"w": 1}))
        with pytest.raises(InvalidVersion, match="run code"):
            store.add(folder)
        assert not (root / "two").exists()

    @pytest.mark.parametrize("name", ["run.py", "setup.sh", "weights", "model.gguf"])
    def test_other_kinds_of_files_are_refused(self, store: Store, folder: Path, name: str) -> None:
        (folder / name).write_text("x")
        with pytest.raises(InvalidVersion, match="holds only"):
            store.add(folder)

    def test_unlisted_files_are_refused(self, store: Store, folder: Path) -> None:
        (folder / "extra.txt").write_text("x")
        with pytest.raises(InvalidVersion, match=r"does not list: extra\.txt"):
            store.add(folder)

    def test_links_are_refused(self, store: Store, folder: Path, tmp_path: Path) -> None:
        secret = tmp_path / "secret.txt"
        secret.write_text("secret")
        (folder / "link.txt").symlink_to(secret)
        with pytest.raises(InvalidVersion, match="symbolic link"):
            store.add(folder)

    def test_a_linked_folder_inside_is_refused(
        self, store: Store, folder: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "outside").mkdir()
        (folder / "inside").symlink_to(tmp_path / "outside")
        with pytest.raises(InvalidVersion, match="symbolic link"):
            store.add(folder)

    def test_damage_is_refused(self, store: Store, folder: Path) -> None:
        (folder / "README.md").write_text("another text")
        with pytest.raises(DigestMismatch, match=r"README\.md"):
            store.add(folder)

    def test_a_folder_without_a_manifest(self, store: Store, tmp_path: Path) -> None:
        with pytest.raises(InvalidVersion, match="no version folder"):
            store.add(tmp_path)

    def test_a_full_disk_leaves_nothing_behind(
        self, store: Store, root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(shutil, "copyfile", full)
        with pytest.raises(CannotWrite, match="no space left"):
            store.add(folder)
        assert [path.name for path in root.iterdir()] == ["one"]

    def test_only_directories_can_be_added_to(self, folder: Path, tmp_path: Path) -> None:
        with pytest.raises(InvalidVersion, match="name one to add to"):
            Store([], tmp_path).add(folder)


class TestRemote:
    @pytest.fixture
    def url(self, root: Path) -> str:
        """The same source in fsspec's memory file system."""
        filesystem = fsspec.filesystem("memory")
        place = f"/{uuid4().hex}"
        filesystem.put(str(root), place, recursive=True)
        return f"memory:/{place}"

    def test_it_is_read_like_a_folder(self, url: str, store: Store, tmp_path: Path) -> None:
        remote = Store([open_source(url)], tmp_path / "cache")
        assert isinstance(remote.sources[0], RemoteSource)
        assert remote.names() == ["one"]
        version = remote.get("one")
        assert version.digest == store.get("one").digest
        folder = version.folder(tmp_path / "cache")
        assert folder.is_relative_to(tmp_path / "cache")
        assert not files.mismatches(folder, version.manifest.files)

    def test_a_damaged_copy_in_the_cache_is_fetched_again(self, url: str, tmp_path: Path) -> None:
        version = Store([open_source(url)], tmp_path / "cache").get("one")
        folder = version.folder(tmp_path / "cache")
        (folder / "adapter_model.safetensors").write_bytes(b"damage")
        folder = version.folder(tmp_path / "cache")
        assert not files.mismatches(folder, version.manifest.files)

    def test_damage_at_the_source_never_reaches_the_cache(self, url: str, tmp_path: Path) -> None:
        name = f"{url}/one/adapter_model.safetensors"
        with fsspec.open(name, "wb") as file:
            file.write(b"damage")
        version = Store([open_source(url)], tmp_path / "cache").get("one")
        with pytest.raises(DigestMismatch):
            version.folder(tmp_path / "cache")
        assert list((tmp_path / "cache" / "versions").iterdir()) == []

    def test_unlisted_files_are_found(self, url: str, tmp_path: Path) -> None:
        with fsspec.open(f"{url}/one/extra.bin", "wb") as file:
            file.write(b"x")
        assert Store([open_source(url)], tmp_path).verify("one").unlisted == ("extra.bin",)

    def test_an_unknown_name_is_no_error_of_the_source(self, url: str, tmp_path: Path) -> None:
        with pytest.raises(UnknownVersion, match="known: one"):
            Store([open_source(url)], tmp_path).get("two")

    @pytest.mark.parametrize(
        ("url", "driver", "extra"), [("s3://b/v", "s3fs", "s3"), ("gs://b/v", "gcsfs", "gcs")]
    )
    def test_a_missing_driver_names_the_extra(
        self, url: str, driver: str, extra: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, driver, None)
        with pytest.raises(RemoteUnreadable) as caught:
            RemoteFolder(url)
        assert f"pip install 'requery-search[{extra}]'" in str(caught.value)

    def test_a_hub_that_cannot_be_reached_is_one_line(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        program = (
            "from model_store.remote import RemoteFolder, RemoteUnreadable\n"
            "try: RemoteFolder('hf://someone/models').folders()\n"
            "except RemoteUnreadable as error: print(error)"
        )
        # In a process of its own, because the Hub's library reads this when it is imported.
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free_port()}")
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=90
        )
        assert done.stdout.startswith("cannot read hf://someone/models: ")
        assert len(done.stdout.splitlines()) == 1

    @pytest.mark.parametrize("url", ["nosuchscheme://x/y", "memory://nothing/here"])
    def test_a_url_that_cannot_be_read_is_named(self, url: str, tmp_path: Path) -> None:
        with pytest.raises(RemoteUnreadable, match=url):
            Store([open_source(url)], tmp_path).names()

    @pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x"])
    def test_no_name_leaves_the_url(self, url: str, name: str) -> None:
        with pytest.raises(RemoteUnreadable, match="refusing"):
            RemoteFolder(url).read(name, most=10)


class TestConfiguration:
    def test_sources_come_from_the_environment(
        self, root: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("REQUERY_MODEL_SOURCES", f" {root} ,, file://{root}")
        labels = [source.label for source in open_store().sources]
        assert labels == [str(root), str(root), "package"]

    def test_the_packaged_versions_come_last(self, root: Path) -> None:
        last = open_store([str(root)]).sources[-1]
        assert isinstance(last, FolderSource)
        assert last.root == PACKAGED

    def test_the_cache_directory(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("REQUERY_CACHE_DIR", str(tmp_path))
        assert default_cache_dir() == tmp_path
        monkeypatch.delenv("REQUERY_CACHE_DIR")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
        assert default_cache_dir() == tmp_path / "xdg" / "requery"


class TestPack:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        write_stub_version(tmp_path / "two")
        return tmp_path / "two"

    @staticmethod
    def pack(folder: Path, name: str = "two") -> None:
        pack_version(
            folder,
            name=name,
            base=BaseSpec(source="b.gguf", sha256="0" * 64, license="Apache-2.0"),
            weights=WeightsSpec(kind="adapter"),
            prompt=PROMPT,
            decoding=DecodingSpec(temperatures=(0.0,)),
            evaluation={"auc": 0.9},
        )

    def test_packing_again_takes_in_what_changed(self, folder: Path, tmp_path: Path) -> None:
        (folder / "README.md").write_text("A better card.\n")
        self.pack(folder)
        version = Store([FolderSource(tmp_path)], tmp_path).get("two")
        assert version.manifest.evaluation == {"auc": 0.9}
        version.folder(tmp_path)

    def test_the_trainers_machine_is_forgotten(self, folder: Path) -> None:
        config = folder / "adapter_config.json"
        config.write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "/home/me"}))
        self.pack(folder)
        assert "/home/me" not in config.read_text()

    def test_pickles_are_refused(self, folder: Path) -> None:
        (folder / "optimizer.pt").write_bytes(b"x")
        with pytest.raises(InvalidVersion, match="run code"):
            self.pack(folder)

    def test_a_bad_name_is_refused_and_nothing_written(self, folder: Path) -> None:
        before = (folder / MANIFEST).read_bytes()
        with pytest.raises(InvalidVersion, match="name"):
            self.pack(folder, name="Two")
        assert (folder / MANIFEST).read_bytes() == before


def test_programs_of_before_can_read_what_has_no_corrector(root: Path) -> None:
    plain = json.loads((root / "one" / MANIFEST).read_text())
    assert plain["schema_version"] == 1
    # They refuse fields that they do not know.
    assert "spelling" not in plain
    old = Store([FolderSource(root)]).get("one").manifest
    (root / "one" / "words.txt").write_text("steel 9\n")
    pack_version(
        root / "one",
        name="one",
        base=old.base,
        weights=old.weights,
        prompt=old.prompt,
        decoding=old.decoding,
        spelling=SpellingSpec(words_file="words.txt"),
    )
    newer = json.loads((root / "one" / MANIFEST).read_text())
    assert newer["schema_version"] == 2
    assert newer["spelling"] == {
        "words_file": "words.txt", "pairs_file": None, "max_edits": 2, "trust": 0.0
    }  # fmt: skip
