"""Versions made to do harm: each is refused with one clear line, however it is asked for."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from model_store.cli import app
from model_store.errors import DigestMismatch, InvalidVersion, ModelStoreError, UnknownVersion
from model_store.files import spec_of
from model_store.harmless import MAX_HEADER_BYTES, require_safetensors
from model_store.manifest import RECORD, Manifest
from model_store.materialise import is_materialised, materialise, materialised_dir
from model_store.remote import RemoteFolder, RemoteUnreadable
from model_store.store import MANIFEST, FolderSource, Store, open_source, pack_version
from tests.support.model_versions import PROMPT, write_full_version, write_stub_version


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A source with the versions "full" and "stub"."""
    write_full_version(tmp_path / "source" / "full")
    write_stub_version(tmp_path / "source" / "stub")
    return tmp_path / "source"


@pytest.fixture
def store(root: Path, tmp_path: Path) -> Store:
    return Store([FolderSource(root)], tmp_path / "cache")


def relist(folder: Path, **more: dict[str, Any]) -> None:
    """List the files of a folder as they are: whoever wrote them has written the manifest too."""
    content = json.loads((folder / MANIFEST).read_text())
    for name in content["files"]:
        content["files"][name] = spec_of(folder / name).model_dump()
    content["files"] |= more
    (folder / MANIFEST).write_text(json.dumps(content))


def one_line(error: BaseException) -> str:
    message = str(error)
    assert message
    assert "\n" not in message
    return message


class Bomb:
    """What a pickle of it does when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def tampered(folder: Path, _outside: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def grown(folder: Path, _outside: Path) -> None:
    with (folder / "model.safetensors").open("ab") as file:
        file.write(b"more")


def pickled(suffix: str) -> Callable[[Path, Path], None]:
    def write(folder: Path, outside: Path) -> None:
        (folder / f"model{suffix}").write_bytes(pickle.dumps(Bomb(outside / "ran")))

    return write


def pickle_called_safetensors(folder: Path, outside: Path) -> None:
    (folder / "model.safetensors").write_bytes(pickle.dumps(Bomb(outside / "ran")))
    relist(folder)


def listed_link(folder: Path, outside: Path) -> None:
    path = folder / "config.json"
    shutil.copy(path, outside / "config.json")
    path.unlink()
    path.symlink_to(outside / "config.json")


def unlisted_link(folder: Path, outside: Path) -> None:
    (folder / "notes.txt").symlink_to("/etc/hostname")


def linked_folder(folder: Path, outside: Path) -> None:
    (folder / "more").symlink_to(outside)


def with_json(name: str, content: object) -> Callable[[Path, Path], None]:
    def write(folder: Path, _outside: Path) -> None:
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_text(text)
        relist(folder, **{name: spec_of(folder / name).model_dump()})

    return write


def with_header(length: int, header: bytes) -> Callable[[Path, Path], None]:
    def write(folder: Path, _outside: Path) -> None:
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", length) + header)
        relist(folder)

    return write


def long_header(folder: Path, _outside: Path) -> None:
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}")
        file.truncate(MAX_HEADER_BYTES + 100)  # sparse: it takes no room
    relist(folder)


def tensors(**fields: Any) -> bytes:
    return json.dumps(
        {"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} | fields}
    ).encode()


FAR = tensors(data_offsets=[0, 2**40])
WIDE = tensors(shape=[2**40, 2**40])
AUTO = {"AutoModelForCausalLM": "evil.Model"}
TRAPS: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "weights with another byte": (tampered, "SHA-256 differs"),
    "weights with more bytes": (grown, "bytes instead of"),
    **{
        f"a pickle, {suffix}": (pickled(suffix), "run code")
        for suffix in (".bin", ".pt", ".pth", ".pkl", ".ckpt", ".PT", ".npy")
    },
    "a pickle called safetensors": (pickle_called_safetensors, "no safetensors file"),
    "a file that is a link": (listed_link, "symbolic link"),
    "a link that nobody lists": (unlisted_link, "symbolic link"),
    "a folder that is a link": (linked_folder, "symbolic link"),
    "a model of its own": (with_json("config.json", {"auto_map": AUTO}), "auto_map names code"),
    "one deeper down": (
        with_json("config.json", {"a": [{"text_config": {"auto_map": AUTO}}]}), "auto_map",
    ),
    "a tokenizer of its own": (
        with_json("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.T", None]}}),
        "auto_map names code",
    ),
    "a chat template": (
        with_json("tokenizer_config.json", {"chat_template": "{{ ''.__class__.__mro__ }}"}),
        "chat_template is a program",
    ),
    "a wish for trust": (with_json("config.json", {"trust_remote_code": True}), "trusted"),
    "a generation of its own": (
        with_json("generation_config.json", {"custom_generate": "evil/repo"}), "custom_generate",
    ),
    "no json": (with_json("config.json", "{"), "is no JSON"),
    "json without a bottom": (with_json("config.json", "[" * 100_000), "is no JSON"),
    "a header longer than all memory": (with_header(2**62, b"{}"), "no safetensors file"),
    "a header longer than the file": (with_header(100, b"{}"), "no safetensors file"),
    "a header longer than is sane": (long_header, "at most"),
    "no header": (with_header(0, b""), "no safetensors file"),
    "a header that is no json": (with_header(4, b"\x80\x04]."), "no safetensors file"),
    "a tensor beyond the file": (with_header(len(FAR), FAR), "no safetensors file"),
    "a tensor beyond all memory": (with_header(len(WIDE), WIDE + bytes(16)), "no safetensors"),
}  # fmt: skip


@pytest.mark.parametrize(("trap", "said"), TRAPS.values(), ids=TRAPS.keys())
def test_a_version_that_is_a_trap_is_neither_served_nor_verified_nor_added(
    store: Store, root: Path, tmp_path: Path, trap: Callable[[Path, Path], None], said: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    trap(root / "full", outside)
    cache = tmp_path / "cache"
    with pytest.raises(InvalidVersion) as served:
        materialise(store.get("full"), cache)
    assert said in one_line(served.value)
    assert not materialised_dir(store.get("full"), cache).exists()
    report = store.verify("full")
    assert not report.ok
    assert any(said in problem for problem in report.problems)
    with pytest.raises(InvalidVersion) as added:
        store.add(root / "full", to=tmp_path / "other")
    one_line(added.value)
    assert not (tmp_path / "other" / "full").exists()
    assert not (outside / "ran").exists()
    for command in ("materialise", "verify"):
        done = CliRunner().invoke(app, [command, "full", "--source", str(root)])
        assert done.exit_code == 1
        assert not isinstance(done.exception, ModelStoreError)
    done = CliRunner().invoke(app, ["materialise", "full", "--source", str(root)])
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("requery: ")


@pytest.mark.parametrize("kind", ["adapter_config.json", "adapter_model.safetensors"])
def test_an_adapter_that_the_manifest_does_not_list_is_not_read(
    store: Store, root: Path, tmp_path: Path, kind: str
) -> None:
    folder = root / "stub"
    shutil.copy(folder / "adapter_model.safetensors", folder / "listed.safetensors")
    content = json.loads((folder / MANIFEST).read_text())
    content["files"]["listed.safetensors"] = content["files"]["adapter_model.safetensors"]
    del content["files"][kind]
    (folder / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(InvalidVersion, match=f"lists no {kind}") as caught:
        materialise(store.get("stub"), tmp_path / "cache")
    one_line(caught.value)


def test_packing_refuses_what_adding_would(root: Path) -> None:
    folder = root / "full"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ x }}"}))
    before = (folder / MANIFEST).read_bytes()
    manifest = Manifest.model_validate_json(before)
    with pytest.raises(InvalidVersion, match="chat_template"):
        pack_version(
            folder, name="full", base=manifest.base, weights=manifest.weights, prompt=PROMPT,
            decoding=manifest.decoding,
        )  # fmt: skip
    assert (folder / MANIFEST).read_bytes() == before


def test_a_word_list_may_have_any_word(root: Path, store: Store, tmp_path: Path) -> None:
    with_json("vocab.json", {"auto_map": 1, "chat_template": 2})(root / "full", tmp_path)
    assert materialise(store.get("full"), tmp_path / "cache").is_dir()


@pytest.mark.parametrize("name", ["extra.safetensors", "evil.py", "sub/config.json"])
def test_what_is_put_beside_materialised_weights_is_not_served(
    store: Store, tmp_path: Path, name: str
) -> None:
    version, cache = store.get("full"), tmp_path / "cache"
    folder = materialise(version, cache)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"x")
    assert not is_materialised(version, cache)
    materialise(version, cache)
    assert not (folder / name).exists()


NAMES = [
    "../full", "..", ".", "", "/", "/etc/passwd", "full/", "full/../full", "./full", "full\x00",
    "\x00", "full\n", "FULL", "ｆｕｌｌ", "fu\u200bll", "\u202elluf", "f\u0131ll", "full\ud800",
    "..%2ffull", "%2e%2e", "~root", "full;id", "$(id)", "a" * 100_000, "\x1b[2J", "con\\full",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_a_name_that_is_no_name_finds_nothing(store: Store, root: Path, name: str) -> None:
    with pytest.raises(UnknownVersion) as caught:
        store.get(name)
    message = one_line(caught.value)
    assert message.isascii()
    assert message.isprintable()
    assert len(message) < 1000
    with pytest.raises(UnknownVersion):
        store.verify(name)
    for command in ("show", "verify", "materialise"):
        done = CliRunner().invoke(app, [command, "--source", str(root), "--", name])
        assert done.exit_code == 1
        assert isinstance(done.exception, SystemExit)


PATHS = [
    "../x.json", "/etc/x.json", "a/../../x.json", "./x.json", "a//x.json", "a/./x.json", "x.json/",
    "a\\x.json", "x\x00.json", "x\n.json", "\u202ex.json", "x\ud800.json", "a" * 300 + ".json",
    MANIFEST, RECORD, "model.bin", "model.PT", "run.py", "x.JSON",
]  # fmt: skip


@pytest.mark.parametrize("name", PATHS, ids=ascii)
def test_a_manifest_cannot_list_what_is_not_a_plain_file_of_its_folder(
    store: Store, root: Path, name: str
) -> None:
    content = json.loads((root / "full" / MANIFEST).read_text())
    content["files"][name] = content["files"]["README.md"]
    with pytest.raises(ValidationError):
        Manifest.model_validate(content)
    (root / "full" / MANIFEST).write_text(json.dumps(content))
    with pytest.raises(InvalidVersion) as caught:
        store.get("full")
    one_line(caught.value)
    content["files"].pop(name)
    content["filter"]["brands_file"] = name
    with pytest.raises(ValidationError):
        Manifest.model_validate(content)


def test_a_version_folder_that_is_a_link_out_of_the_store(
    store: Store, root: Path, tmp_path: Path
) -> None:
    (root / "full").rename(tmp_path / "elsewhere")
    (root / "full").symlink_to(tmp_path / "elsewhere")
    assert store.names() == ["stub"]
    for call in (store.get, store.verify):
        with pytest.raises(InvalidVersion, match="symbolic link") as caught:
            call("full")
        one_line(caught.value)


def test_a_manifest_that_is_a_link(store: Store, root: Path, tmp_path: Path) -> None:
    path = root / "full" / MANIFEST
    path.rename(tmp_path / "manifest.json")
    path.symlink_to(tmp_path / "manifest.json")
    with pytest.raises(InvalidVersion, match="symbolic link"):
        store.get("full")


def test_a_manifest_without_end_is_not_read(store: Store, root: Path, tmp_path: Path) -> None:
    with (root / "full" / MANIFEST).open("r+b") as file:
        file.truncate(5 * 2**20)
    with pytest.raises(InvalidVersion, match="too long"):
        store.get("full")
    with pytest.raises(InvalidVersion, match="too long"):
        store.add(root / "full", to=tmp_path / "other")


class TestRemote:
    @pytest.fixture
    def url(self, root: Path) -> str:
        place = f"/{uuid4().hex}"
        fsspec.filesystem("memory").put(str(root), place, recursive=True)
        return f"memory:/{place}"

    @staticmethod
    def write(url: str, data: bytes) -> None:
        with fsspec.open(url, "wb") as file:
            file.write(data)

    def test_a_file_of_another_size_is_not_even_fetched(
        self, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.write(f"{url}/full/model.safetensors", bytes(10**6))
        fetched: list[str] = []
        download = RemoteFolder.download

        def spy(self: RemoteFolder, name: str, target: Path) -> None:
            fetched.append(name)
            download(self, name, target)

        monkeypatch.setattr(RemoteFolder, "download", spy)
        version = Store([open_source(url)], tmp_path / "cache").get("full")
        with pytest.raises(DigestMismatch, match="1000000 bytes instead of") as caught:
            version.folder(tmp_path / "cache")
        one_line(caught.value)
        assert "full/model.safetensors" not in fetched

    def test_a_manifest_without_end_is_not_read(self, url: str, tmp_path: Path) -> None:
        self.write(f"{url}/full/{MANIFEST}", bytes(5 * 2**20))
        with pytest.raises(RemoteUnreadable, match="longer than"):
            Store([open_source(url)], tmp_path / "cache").get("full")

    def test_pickles_there_are_no_part_of_the_copy(self, url: str, tmp_path: Path) -> None:
        self.write(f"{url}/full/model.pkl", pickle.dumps(Bomb(tmp_path / "ran")))
        folder = (
            Store([open_source(url)], tmp_path / "cache").get("full").folder(tmp_path / "cache")
        )
        assert not (folder / "model.pkl").exists()
        assert not (tmp_path / "ran").exists()


def test_the_packaged_weights_pass(tmp_path: Path) -> None:
    from model_store.store import PACKAGED

    for path in PACKAGED.glob("*/*.safetensors"):
        require_safetensors(path)
