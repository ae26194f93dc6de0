"""Turns a version into the folder of merged weights that an engine serves.

An unmerged adapter multiplies an engine's latency, and engines do not read GGUF bases. So each
version is merged once, into a folder of the cache named by its digest; later starts only check that
folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from tokenizers import Tokenizer

from model_store.base import find_base
from model_store.errors import CannotWrite, InvalidVersion
from model_store.files import (
    TEMPORARY,
    files_under,
    mismatches,
    new_folder,
    no_space,
    spec_of,
    writing,
)
from model_store.manifest import RECORD, FileSpec, Manifest, RelativePath
from model_store.merge import ADAPTER_CONFIG, ADAPTER_WEIGHTS, check_adapter
from model_store.prompt import PromptFormat
from model_store.store import StoredVersion, default_cache_dir

_LAYOUT = 1
"""Increased when materialising changes, so that old folders are made again."""
_MERGE_SECONDS = 1800


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    digest: str
    layout: int
    files: dict[RelativePath, FileSpec]


def materialised_dir(version: StoredVersion | Manifest, cache_dir: Path | None = None) -> Path:
    """Where :func:`materialise` puts a version, whether it is there or not."""
    root = cache_dir or default_cache_dir()
    return root / "models" / f"{version.name}-{version.digest[:16]}"


def is_materialised(version: StoredVersion, cache_dir: Path | None = None) -> bool:
    """Whether the folder is complete and made from this version (reads every byte)."""
    return _is_whole(materialised_dir(version, cache_dir), version)


def materialise(version: StoredVersion, cache_dir: Path | None = None) -> Path:
    """The version's folder of merged bf16 safetensors, in the Hugging Face layout.

    It is made if it is missing or damaged; else every file's digest is checked. Concurrent
    processes make it once. A separate process does the heavy work.

    Args:
        version: from :meth:`model_store.store.Store.get`.
        cache_dir: default is :func:`model_store.store.default_cache_dir`.

    Raises:
        BaseNotFound: the base model is not on this machine.
        DigestMismatch: the base or a file of the version has other bytes than promised.
        InvalidVersion: base, adapter and prompt tokens do not fit together.
        CannotWrite: the cache directory is full or read-only.
    """
    root = cache_dir or default_cache_dir()
    target = materialised_dir(version, root)
    if _is_whole(target, version):
        return target
    with writing(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
    with locked(target):
        # Another process may have made it while this one waited.
        if not _is_whole(target, version):
            _discard_leftovers(target)
            with new_folder(target) as temporary:
                _build(version, temporary, root)
                load_prompt_format(temporary, version.manifest)
                _write_record(version, temporary)
    return target


def load_prompt_format(folder: Path, manifest: Manifest) -> PromptFormat:
    """The prompt format of a materialised version; no model library is imported.

    Raises:
        InvalidVersion: the folder has no usable tokenizer, or a prompt token is not in it.
    """
    path = folder / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise InvalidVersion(f"cannot read the tokenizer {path}: {error}") from error
    return PromptFormat(tokenizer, manifest.prompt)


def _is_whole(folder: Path, version: StoredVersion) -> bool:
    try:
        record = _Record.model_validate_json((folder / RECORD).read_bytes())
    except (OSError, ValidationError):
        return False
    if record.digest != version.digest or record.layout != _LAYOUT:
        return False
    # An engine loads all weights in the folder, listed or not.
    found = {name for name, _ in files_under(folder)}
    return found == {*record.files, RECORD} and not mismatches(folder, record.files)


def _write_record(version: StoredVersion, folder: Path) -> None:
    record = _Record(
        version=version.name,
        digest=version.digest,
        layout=_LAYOUT,
        files={name: spec_of(path) for name, path in files_under(folder)},
    )
    (folder / RECORD).write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")


def _build(version: StoredVersion, out: Path, cache_dir: Path) -> None:
    folder = version.folder(cache_dir)
    if version.manifest.weights.kind == "full":
        _link_model(folder, version.manifest, out)
        return
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if name not in version.manifest.files:
            raise InvalidVersion(f"version {version.name!r} lists no {name}: it is no PEFT adapter")
    check_adapter(folder)
    base = find_base(version.manifest.base, cache_dir)
    _merge_in_subprocess(base, out, folder)


def _link_model(folder: Path, manifest: Manifest, out: Path) -> None:
    for name in ("config.json", "tokenizer.json"):
        if name not in manifest.files:
            raise InvalidVersion(f"version {manifest.name!r} has full weights, but no {name}")
    for name in manifest.files:
        if name.endswith(".md"):
            continue
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(folder / name, target)
        except OSError:  # another file system, or one without links
            shutil.copyfile(folder / name, target)


def _merge_in_subprocess(base: Path, out: Path, adapter: Path) -> None:
    command = [sys.executable, "-P", "-m", "model_store.merge", str(base), str(out), str(adapter)]
    # The program may start in any directory, and needs no GPU.
    environment = {
        # It needs none of the keys and passwords in our settings.
        **{name: value for name, value in os.environ.items() if not name.startswith("REQUERY_")},
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "CUDA_VISIBLE_DEVICES": "",
        "TOKENIZERS_PARALLELISM": "false",
    }
    try:
        done = subprocess.run(  # noqa: S603 - our own interpreter and module
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_MERGE_SECONDS,
            check=False,
            text=True,
            errors="replace",
        )
    except subprocess.TimeoutExpired:
        raise InvalidVersion(
            f"merging {adapter} took longer than {_MERGE_SECONDS} s and was stopped"
        ) from None
    if done.returncode == 0:
        return
    raise _failure(done, out)


def _failure(done: subprocess.CompletedProcess[str], out: Path) -> Exception:
    try:
        outcome = json.loads(done.stdout.strip().splitlines()[-1])
        kind, message = str(outcome["error"]), str(outcome["message"])
    except (ValueError, IndexError, KeyError, TypeError):
        if done.returncode < 0:
            # Most often the kernel, short of memory.
            return InvalidVersion(
                f"merging was ended by signal {-done.returncode}; is there enough memory?"
            )
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return InvalidVersion(f"merging failed: {last}")
    if kind == CannotWrite.__name__:
        return CannotWrite(no_space(out.parent) if message == "no space left" else message)
    return InvalidVersion(message)


@contextmanager
def locked(target: Path) -> Iterator[None]:
    """Lock a target against other processes; the lock ends with the process that holds it."""
    path = target.with_name(f"{target.name}.lock")
    with writing(target.parent):
        file = path.open("w", encoding="utf-8")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _discard_leftovers(target: Path) -> None:
    """Remove temporary folders of killed processes; the lock is held."""
    for leftover in target.parent.glob(f"{TEMPORARY}{target.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)
