"""Materialising, on versions with full weights, which need no model library."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model_store import materialise as module
from model_store.errors import BaseNotFound, CannotWrite, DigestMismatch, InvalidVersion
from model_store.files import files_under
from model_store.manifest import RECORD
from model_store.materialise import (
    is_materialised,
    load_prompt_format,
    materialise,
    materialised_dir,
)
from model_store.merge import check_adapter
from model_store.store import FolderSource, Store, StoredVersion
from tests.support.model_versions import (
    PROMPT,
    real_base,
    write_full_version,
    write_stub_version,
)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def version(tmp_path: Path, cache: Path) -> StoredVersion:
    write_full_version(tmp_path / "source" / "full-1")
    return Store([FolderSource(tmp_path / "source")], cache).get("full-1")


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the versions that were really built, in order."""
    built: list[str] = []
    build = module._build

    def counted(version: StoredVersion, out: Path, cache_dir: Path) -> None:
        built.append(version.name)
        build(version, out, cache_dir)

    monkeypatch.setattr(module, "_build", counted)
    return built


def nothing_but(folder: Path, *names: str) -> bool:
    return sorted(path.name for path in folder.iterdir()) == sorted(names)


def test_the_folder_holds_the_model_and_a_record(version: StoredVersion, cache: Path) -> None:
    folder = materialise(version, cache)
    assert folder == materialised_dir(version, cache)
    names = {name for name, _ in files_under(folder)}
    assert names == {"config.json", "tokenizer.json", "model.safetensors", RECORD}
    record = json.loads((folder / RECORD).read_text())
    assert record["digest"] == version.digest
    assert set(record["files"]) == names - {RECORD}
    assert nothing_but(folder.parent, folder.name, f"{folder.name}.lock")


def test_the_second_time_only_checks(
    version: StoredVersion, cache: Path, builds: list[str]
) -> None:
    materialise(version, cache)
    materialise(version, cache)
    assert builds == ["full-1"]
    assert is_materialised(version, cache)


def damage_bytes(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()  # not through the link into the store
    path.write_bytes(data)


def damage_file(folder: Path) -> None:
    (folder / "config.json").unlink()


def damage_record(folder: Path) -> None:
    (folder / RECORD).write_text("{")


def damage_no_record(folder: Path) -> None:
    (folder / RECORD).unlink()


def damage_digest(folder: Path) -> None:
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps({**record, "digest": "0" * 64}))


def damage_layout(folder: Path) -> None:
    record = json.loads((folder / RECORD).read_text())
    (folder / RECORD).write_text(json.dumps({**record, "layout": 0}))


@pytest.mark.parametrize(
    "damage",
    [
        damage_bytes,
        damage_file,
        damage_record,
        damage_no_record,
        damage_digest,
        damage_layout,
    ],
)
def test_a_damaged_folder_is_made_again(
    version: StoredVersion, cache: Path, builds: list[str], damage: Any
) -> None:
    folder = materialise(version, cache)
    damage(folder)
    assert not is_materialised(version, cache)
    assert materialise(version, cache) == folder
    assert is_materialised(version, cache)
    assert builds == ["full-1", "full-1"]
    assert nothing_but(folder.parent, folder.name, f"{folder.name}.lock")


def test_what_a_killed_process_left_is_cleared_away(version: StoredVersion, cache: Path) -> None:
    target = materialised_dir(version, cache)
    leftover = target.with_name(f".tmp-{target.name}-dead")
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_bytes(b"half")
    materialise(version, cache)
    assert nothing_but(target.parent, target.name, f"{target.name}.lock")


def test_two_versions_do_not_share_a_folder(
    tmp_path: Path, version: StoredVersion, cache: Path
) -> None:
    write_full_version(tmp_path / "source" / "full-2", seed=1)
    other = Store([FolderSource(tmp_path / "source")], cache).get("full-2")
    assert materialise(other, cache) != materialise(version, cache)


def test_a_damaged_version_is_refused_and_leaves_nothing(
    version: StoredVersion, cache: Path
) -> None:
    folder = version.source.folder(version.name, version.manifest, cache)
    (folder / "config.json").write_text("{}")
    with pytest.raises(DigestMismatch, match=r"config\.json"):
        materialise(version, cache)
    target = materialised_dir(version, cache)
    assert nothing_but(target.parent, f"{target.name}.lock")


def test_a_missing_base_is_named(tmp_path: Path, cache: Path) -> None:
    write_stub_version(tmp_path / "source" / "one")
    version = Store([FolderSource(tmp_path / "source")], cache).get("one")
    with pytest.raises(BaseNotFound, match="put it there"):
        materialise(version, cache)


def test_a_full_disk_is_said_and_leaves_nothing(
    version: StoredVersion, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(CannotWrite, match="no space left to write in"):
        materialise(version, cache)
    target = materialised_dir(version, cache)
    assert nothing_but(target.parent, f"{target.name}.lock")


def test_a_cache_that_is_a_file_is_said(version: StoredVersion, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CannotWrite, match="cannot write"):
        materialise(version, tmp_path / "file")


def test_a_missing_prompt_token_is_found_before_anything_is_served(
    tmp_path: Path, cache: Path
) -> None:
    folder = tmp_path / "source" / "full-3"
    write_full_version(folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["prompt"]["query"] = "<no-such-token>"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    version = Store([FolderSource(tmp_path / "source")], cache).get("full-3")
    with pytest.raises(InvalidVersion, match="<no-such-token>"):
        materialise(version, cache)
    assert not materialised_dir(version, cache).exists()


def test_the_prompt_format_comes_from_the_folder(version: StoredVersion, cache: Path) -> None:
    prompt_format = load_prompt_format(materialise(version, cache), version.manifest)
    assert prompt_format.spec == PROMPT
    assert prompt_format.decode(prompt_format.encode("steel stake")) == "steel stake"


def test_a_folder_without_a_tokenizer(version: StoredVersion, tmp_path: Path) -> None:
    with pytest.raises(InvalidVersion, match="cannot read the tokenizer"):
        load_prompt_format(tmp_path, version.manifest)


ASK = """
import json, sys, time
from pathlib import Path
from model_store import materialise as module
from model_store.store import FolderSource, Store
source, cache, go = map(Path, sys.argv[1:4])
others = sys.argv[4]
build = module._build
built = []
def slow(version, out, cache_dir):
    built.append(version.name)
    print("building", flush=True)
    build(version, out, cache_dir)
    inode = Path(f"{module.materialised_dir(version, cache_dir)}.lock").stat().st_ino
    # The others wait for the lock, as the kernel's own list has it.
    while sum("->" in l and f":{inode} " in l for l in open("/proc/locks")) < int(others):
        time.sleep(0.005)
module._build = slow
version = Store([FolderSource(source)], cache).get("full-1")
print("ready", flush=True)
while not go.exists():
    time.sleep(0.005)
folder = module.materialise(version, cache)
whole = module.is_materialised(version, cache)
print(json.dumps({"folder": str(folder), "built": len(built), "whole": whole}))
"""


def test_processes_that_ask_at_once_make_it_once(
    version: StoredVersion, tmp_path: Path, cache: Path
) -> None:
    go = tmp_path / "go"
    command = [sys.executable, "-c", ASK, str(tmp_path / "source"), str(cache), str(go), "2"]
    asking = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=_with_path())
        for _ in range(3)
    ]
    for process in asking:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    go.touch()
    answers = [
        json.loads(process.communicate(timeout=30)[0].splitlines()[-1]) for process in asking
    ]
    assert {answer["folder"] for answer in answers} == {str(materialised_dir(version, cache))}
    assert all(answer["whole"] for answer in answers)
    assert sum(answer["built"] for answer in answers) == 1


def test_a_process_that_is_killed_does_not_block_the_next(
    version: StoredVersion, tmp_path: Path, cache: Path
) -> None:
    go = tmp_path / "go"
    go.touch()
    command = [sys.executable, "-c", ASK, str(tmp_path / "source"), str(cache), str(go), "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=_with_path()) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert process.stdout.readline() == "building\n"
        process.kill()
    folder = materialise(version, cache)
    assert is_materialised(version, cache)
    assert nothing_but(folder.parent, folder.name, f"{folder.name}.lock")


def _with_path() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(module.__file__).parents[1])}


class TestAdapterChecks:
    @pytest.fixture
    def adapter(self, tmp_path: Path) -> Path:
        write_stub_version(tmp_path / "one")
        return tmp_path / "one"

    def test_plain_lora_is_fine(self, adapter: Path) -> None:
        check_adapter(adapter)

    @pytest.mark.parametrize(
        "config",
        [
            "{",
            "[]",
            "{}",
            '{"peft_type": "PROMPT_TUNING"}',
            '{"peft_type": "LORA", "megatron_config": {"a": 1}, "megatron_core": "os"}',
            '{"peft_type": "LORA", "auto_mapping": {"parent_library": "os"}}',
            '{"peft_type": "LORA", "corda_config": {"covariance_file": "x.pt"}}',
            '{"peft_type": "LORA", "eva_config": {"rho": 2}}',
            '{"peft_type": "LORA", "layer_replication": [[0, 1000]]}',
            '{"peft_type": "LORA", "something_new": "os"}',
            '{"peft_type": "LORA", "init_lora_weights": "corda"}',
            '{"peft_type": "LORA", "r": 1000000000}',
            '{"peft_type": "LORA", "r": "16"}',
            '{"peft_type": "LORA", "rank_pattern": {"q_proj": 1000000000}}',
            '{"peft_type": "LORA", "rank_pattern": [8]}',
            "[" * 100_000,
        ],
    )
    def test_anything_else_is_refused(self, adapter: Path, config: str) -> None:
        (adapter / "adapter_config.json").write_text(config)
        with pytest.raises(InvalidVersion, match="adapter_config"):
            check_adapter(adapter)

    def test_pickled_weights_are_no_substitute(self, adapter: Path) -> None:
        weights = adapter / "adapter_model.safetensors"
        weights.rename(weights.with_suffix(".bin"))
        with pytest.raises(InvalidVersion, match=r"no adapter_model\.safetensors"):
            check_adapter(adapter)


class TestMergeFailures:
    """What the merging process says, or fails to say, becomes one clear error."""

    @pytest.fixture
    def adapter_version(self, tmp_path: Path, cache: Path) -> StoredVersion:
        write_stub_version(tmp_path / "source" / "one", base=real_base())
        return Store([FolderSource(tmp_path / "source")], cache).get("one")

    @pytest.mark.parametrize(
        ("program", "error", "message"),
        [
            (
                'print(\'{"error": "CannotWrite", "message": "no space left"}\'); exit(1)',
                CannotWrite,
                "no space left to write in",
            ),
            (
                'print(\'{"error": "InvalidVersion", "message": "odd shapes"}\'); exit(1)',
                InvalidVersion,
                "odd shapes",
            ),
            ("raise ImportError('No module named torch')", InvalidVersion, "No module named torch"),
            ("import os; os.kill(os.getpid(), 9)", InvalidVersion, "signal 9; is there enough"),
        ],
    )
    def test_it_is_told(
        self,
        adapter_version: StoredVersion,
        cache: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        program: str,
        error: type[Exception],
        message: str,
    ) -> None:
        fake = tmp_path / "python"
        (tmp_path / "merge.py").write_text(program)
        fake.write_text(f"#!/bin/sh\nexec {sys.executable} {tmp_path}/merge.py\n")
        fake.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(fake))
        with pytest.raises(error, match=message):
            materialise(adapter_version, cache)
        assert not materialised_dir(adapter_version, cache).exists()
