"""Checks that a version holds only data: nothing that runs when it is read.

The manifest's digests prove that the bytes are those that were released. These checks prove that no
reader of them runs code, follows a link out of the folder, or takes far more memory than the files
are long.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from model_store.errors import InvalidVersion
from model_store.files import files_under

ALLOWED = frozenset({".safetensors", ".json", ".txt", ".md", ".index"})
PICKLES = frozenset(
    {
        ".bin",
        ".pt",
        ".pth",
        ".pkl",
        ".pickle",
        ".ckpt",
        ".joblib",
        ".npy",
        ".npz",
        ".msgpack",
        ".h5",
    }
)
MAX_HEADER_BYTES = 8 * 2**20
"""Longest header of a safetensors file: some 50,000 tensors. The library allows 100 MB of JSON,
which takes gigabytes to read."""
MAX_JSON_BYTES = 16 * 2**20

_NAMING_CODE = {
    "auto_map": "names code to import",
    "custom_pipelines": "names code to import",
    "custom_generate": "names code to import",
    "trust_remote_code": "asks for code to be trusted",
    "chat_template": "is a program, which nothing here needs",
}
"""Fields of JSON files, at any depth, that make some library run what the version brings."""
_VOCABULARIES = frozenset({"tokenizer.json", "vocab.json", "added_tokens.json"})
"""Any word may be a field of these; the tokenizers library reads no code from them."""


def require_harmless_name(name: str, folder: Path) -> None:
    """Refuse kinds of files that no version may have.

    Raises:
        InvalidVersion: it is a pickle or another file that is neither weights nor text.
    """
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in PICKLES:
        raise InvalidVersion(
            f"{folder / name}: pickled weights run code when they are read and are refused; "
            "save them as safetensors"
        )
    if suffix not in ALLOWED:
        raise InvalidVersion(
            f"{folder / name}: a version holds only {', '.join(sorted(ALLOWED))} files"
        )


def require_no_traps(folder: Path) -> None:
    """Refuse a folder with a link or a pickle, even if the manifest does not list it.

    Raises:
        InvalidVersion: the folder has one.
    """
    for name, path in files_under(folder):
        if path.is_symlink():
            raise InvalidVersion(f"{path} is a symbolic link; a version holds plain files only")
        if path.suffix.lower() in PICKLES:
            require_harmless_name(name, folder)


def require_harmless(folder: Path, files: Iterable[str]) -> None:
    """Refuse a version whose files could run code or exhaust memory.

    Args:
        folder: of the version.
        files: listed in its manifest.

    Raises:
        InvalidVersion: the folder holds a link or a pickle; or one of the files is not valid
            safetensors, has too long a header, or names code.
    """
    require_no_traps(folder)
    for name in files:
        path = folder / name
        if name.endswith(".safetensors"):
            require_safetensors(path)
        elif name.endswith(".json") and PurePosixPath(name).name not in _VOCABULARIES:
            _require_plain_json(path)


def require_safetensors(path: Path) -> None:
    """Check the header of a safetensors file: its length, and where its tensors are.

    Raises:
        InvalidVersion: it is no safetensors file, or its header is too long.
    """
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as file:
        start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= path.stat().st_size - 8:
        raise InvalidVersion(f"{path}: is no safetensors file")
    if length > MAX_HEADER_BYTES:
        raise InvalidVersion(
            f"{path}: its header has {length} bytes, and at most {MAX_HEADER_BYTES} are taken"
        )
    try:
        with safe_open(path, framework="numpy"):
            pass
    except SafetensorError as error:
        reason = " ".join(str(error).split())
        raise InvalidVersion(f"{path}: is no safetensors file: {reason}") from error


def _require_plain_json(path: Path) -> None:
    if path.stat().st_size > MAX_JSON_BYTES:
        raise InvalidVersion(f"{path}: is too long; at most {MAX_JSON_BYTES} bytes are taken")
    try:
        left: list[Any] = [json.loads(path.read_bytes())]
    except (ValueError, RecursionError) as error:
        raise InvalidVersion(f"{path}: is no JSON: {_brief(error)}") from error
    while left:
        value = left.pop()
        if isinstance(value, dict):
            for field in _NAMING_CODE.keys() & value.keys():
                if value[field]:
                    raise InvalidVersion(
                        f"{path}: {field} {_NAMING_CODE[field]}; remove it from the version"
                    )
            left += value.values()
        elif isinstance(value, list):
            left += value


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
