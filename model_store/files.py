"""File operations shared by the store and the materialiser."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from model_store.errors import CannotWrite, DigestMismatch
from model_store.manifest import FileSpec

TEMPORARY = ".tmp-"
"""Prefix of folders that are still being written; nothing reads them."""


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def spec_of(path: Path) -> FileSpec:
    """Digest and size of a file."""
    return FileSpec(sha256=sha256_of(path), bytes=path.stat().st_size)


def files_under(folder: Path) -> Iterator[tuple[str, Path]]:
    """Every file and every symbolic link below ``folder``: relative POSIX name and path, sorted.

    Links are yielded, never followed, so that callers can refuse them.
    """
    for root, folders, names in os.walk(folder, followlinks=False):
        here = Path(root)
        folders.sort()
        links = [name for name in folders if (here / name).is_symlink()]
        for name in sorted([*names, *links]):
            path = here / name
            yield path.relative_to(folder).as_posix(), path


def mismatches(folder: Path, files: Mapping[str, FileSpec]) -> list[str]:
    """What is wrong with the files of a folder; empty if each has the size and digest listed."""
    problems: list[str] = []
    for name, spec in files.items():
        path = folder / name
        if _passes_a_link(folder, name):
            problems.append(f"{name}: is a symbolic link, which a version may not contain")
        elif not path.is_file():
            problems.append(f"{name}: is missing")
        elif path.stat().st_size != spec.bytes:
            problems.append(f"{name}: has {path.stat().st_size} bytes instead of {spec.bytes}")
        elif sha256_of(path) != spec.sha256:
            problems.append(f"{name}: its bytes are not the ones listed (SHA-256 differs)")
    return problems


def require_match(what: str, folder: Path, files: Mapping[str, FileSpec]) -> None:
    """Check every file of a folder.

    Raises:
        DigestMismatch: a file is missing, is a link, or has other bytes than listed.
    """
    if problems := mismatches(folder, files):
        raise DigestMismatch(f"{what} in {folder} is damaged: {'; '.join(problems)}")


_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A temporary folder beside ``target`` that becomes ``target`` if the block succeeds.

    Readers see the whole folder or none. If ``target`` exists by then it is replaced.

    Raises:
        CannotWrite: the disk is full or the parent cannot be written.
    """
    temporary = target.with_name(f"{TEMPORARY}{target.name}-{secrets.token_hex(4)}")
    try:
        with writing(target.parent):
            temporary.mkdir(parents=True)
            yield temporary
            sync_tree(temporary)
            if target.exists():
                old = temporary.with_name(temporary.name + "-old")
                target.rename(old)
                temporary.rename(target)
                shutil.rmtree(old, ignore_errors=True)
            else:
                temporary.rename(target)
            _sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file so that a reader sees the old bytes or the new ones, never a part.

    Raises:
        CannotWrite: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(f"{TEMPORARY}{path.name}-{secrets.token_hex(4)}")
    try:
        with writing(path.parent):
            temporary.write_bytes(data)
            _sync(temporary)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write into one clear error.

    Raises:
        CannotWrite: the disk is full, over quota, read-only, or permission is missing.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise CannotWrite(no_space(folder)) from error
        if error.errno in _REFUSED:
            raise CannotWrite(
                f"cannot write {error.filename or folder}: {error.strerror}"
            ) from error
        raise


def no_space(folder: Path) -> str:
    """The message for a full disk."""
    free = ""
    with suppress(OSError):
        free = f" ({shutil.disk_usage(folder).free // 2**20} MiB free)"
    return f"no space left to write in {folder}{free}: free some, or choose another folder"


def sync_tree(folder: Path) -> None:
    """Write a folder's files to the disk, so that a crash cannot keep the rename alone."""
    for _, path in files_under(folder):
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _passes_a_link(folder: Path, name: str) -> bool:
    path = folder
    for part in Path(name).parts:
        path = path / part
        if path.is_symlink():
            return True
    return False
