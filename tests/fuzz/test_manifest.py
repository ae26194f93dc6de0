"""Any bytes as a manifest, and any manifest over a folder: an error of the store, or a version."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.errors import InvalidVersion, ModelStoreError
from model_store.manifest import Manifest
from model_store.store import MANIFEST, FolderSource, Store, check_folder, parse_manifest
from tests.contract import corpus
from tests.contract.document import pointers, replaced
from tests.fuzz.profile import fuzzed
from tests.fuzz.strategies import encodable, json_values
from tests.support.versions import make_manifest

VALID: dict[str, Any] = orjson.loads(
    make_manifest(
        filter={"brands_file": "brands.txt"},
        files={
            "adapter.safetensors": {"sha256": "0" * 64, "bytes": 1},
            "brands.txt": {"sha256": "0" * 64, "bytes": 1},
        },
    ).model_dump_json()
)
_HOLE = "the-hole"


def _require_sound(data: bytes) -> None:
    try:
        manifest = parse_manifest(data, "here")
    except InvalidVersion:
        return
    assert len(manifest.digest) == 64
    again = parse_manifest(manifest.model_dump_json().encode(), "here", manifest.name)
    assert again.digest == manifest.digest
    for name in manifest.files:
        path = Path("/store/v") / name
        assert Path(os.path.normpath(path)).is_relative_to("/store/v")


@pytest.mark.parametrize("value", corpus.VALUES.values(), ids=corpus.VALUES.keys())
def test_any_value_in_any_place(value: bytes) -> None:
    for pointer in pointers(VALID):
        text = orjson.dumps(replaced(VALID, pointer, _HOLE))
        _require_sound(text.replace(f'"{_HOLE}"'.encode(), value))


@pytest.mark.parametrize("text", corpus.STRINGS.values(), ids=corpus.STRINGS.keys())
def test_any_string_in_any_place(text: str) -> None:
    if len(text) > 5000:
        text = text[:5000]
    try:
        text.encode()
    except UnicodeEncodeError:
        text = text.encode("utf-8", "replace").decode()
    for pointer in pointers(VALID):
        _require_sound(orjson.dumps(replaced(VALID, pointer, text)))
    files = {**VALID["files"], f"{text}.json": {"sha256": "0" * 64, "bytes": 1}}
    _require_sound(orjson.dumps({**VALID, "files": files}))


@fuzzed
@given(st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes(data: bytes) -> None:
    _require_sound(data)


@fuzzed
@given(st.data())
def test_values_that_meet(data: st.DataObject) -> None:
    content = VALID
    for pointer in data.draw(st.lists(st.sampled_from(list(pointers(VALID))), max_size=3)):
        try:
            content = replaced(content, pointer, data.draw(json_values))
        except (KeyError, IndexError, TypeError):
            continue  # an earlier value has taken the place away
    _require_sound(json.dumps(content).encode())


def test_a_file_name_that_no_disk_takes_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "test-1"
    folder.mkdir()
    (folder / "adapter.safetensors").write_bytes(b"x")
    files = {**VALID["files"], "n" * 300 + ".json": {"sha256": "0" * 64, "bytes": 1}}
    (folder / MANIFEST).write_bytes(orjson.dumps({**VALID, "files": files}))
    with pytest.raises(InvalidVersion):
        check_folder(folder)


@fuzzed
@given(st.lists(encodable, min_size=1, max_size=3))
def test_files_of_any_name_are_looked_for_in_the_folder_alone(
    tmp_path_factory: pytest.TempPathFactory, names: list[str]
) -> None:
    root = tmp_path_factory.mktemp("store")
    folder = root / "test-1"
    folder.mkdir()
    (folder / "adapter.safetensors").write_bytes(b"x")
    files = {"adapter.safetensors": VALID["files"]["adapter.safetensors"]}
    files |= {f"{name}.json": {"sha256": "0" * 64, "bytes": 1} for name in names}
    content = {**VALID, "files": files, "filter": {}}
    (folder / MANIFEST).write_bytes(orjson.dumps(content))
    store = Store([FolderSource(root)], cache_dir=root / "cache")
    for attempt in (lambda: check_folder(folder), lambda: store.add(folder, to=root / "other")):
        with pytest.raises(ModelStoreError):
            attempt()
    try:
        report = store.verify("test-1")
    except ModelStoreError:
        return
    assert not report.ok
    assert isinstance(store.get("test-1").manifest, Manifest)


@fuzzed
@given(encodable | st.sampled_from(["..", "../test-1", "/etc", "test-1/", "test-1\n", "TEST-1"]))
def test_names_lead_nowhere_else(name: str) -> None:
    store = Store([FolderSource(Path("/nonexistent"))], cache_dir=Path("/nonexistent"))
    with pytest.raises(ModelStoreError, match="no model version is called"):
        store.get(name)
