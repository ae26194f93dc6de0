"""Sources of model versions: the folder in the package, any directory, any fsspec URL.

A source holds one folder for each version, named like the version. Sources are searched in order;
the first that has a name wins. Nothing outside a source is read through it: version names are
plain, file names are relative, and symbolic links are refused.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from model_store.base import find_base
from model_store.errors import DigestMismatch, InvalidVersion, ModelStoreError, UnknownVersion
from model_store.files import (
    TEMPORARY,
    files_under,
    mismatches,
    new_folder,
    require_match,
    spec_of,
    write_atomically,
)
from model_store.harmless import require_harmless, require_harmless_name, require_no_traps
from model_store.manifest import (
    CATALOGUE_SCHEMA,
    SPELLING_SCHEMA,
    BaseSpec,
    CatalogueSpec,
    DecodingSpec,
    FilterSpec,
    Manifest,
    PromptSpec,
    SpellingSpec,
    WeightsSpec,
)
from model_store.remote import RemoteFolder

MANIFEST = "manifest.json"
PACKAGED = Path(__file__).parent / "versions"
"""The versions that ship with Requery."""
SOURCES_VARIABLE = "REQUERY_MODEL_SOURCES"
"""Environment: more sources, separated by commas, searched before the packaged one."""
CACHE_VARIABLE = "REQUERY_CACHE_DIR"
"""Environment: where materialised and fetched models are kept."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)
_MAX_MANIFEST_BYTES = 4 * 2**20


class Source(Protocol):
    """A place that holds versions, each in a folder of its name."""

    @property
    def label(self) -> str:
        """Name of the source in messages."""

    def names(self) -> list[str]:
        """Names of the versions, sorted."""

    def manifest(self, name: str) -> bytes | None:
        """Bytes of a version's manifest; ``None`` if the source has no such version."""

    def unlisted(self, name: str, manifest: Manifest) -> list[str]:
        """Files of a version's folder that its manifest does not list."""

    def folder(self, name: str, manifest: Manifest, cache_dir: Path) -> Path:
        """The version's folder on this machine, fetched if needed; bytes are not checked."""


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """One version and its source."""

    manifest: Manifest
    source: Source

    @property
    def name(self) -> str:
        """Name of the version."""
        return self.manifest.name

    @property
    def digest(self) -> str:
        """Digest of everything that can change an answer; part of cache keys."""
        return self.manifest.digest

    def folder(self, cache_dir: Path) -> Path:
        """The version's folder on this machine, every file's digest checked.

        Raises:
            DigestMismatch: a file is missing or has other bytes than the manifest promises.
            InvalidVersion: the folder holds a link, a pickle, or a file that names code.
            ModelStoreError: the source cannot be read or the cache cannot be written.
        """
        folder = self.source.folder(self.name, self.manifest, cache_dir)
        require_match(f"version {self.name!r}", folder, self.manifest.files)
        require_harmless(folder, self.manifest.files)
        return folder


@dataclass(frozen=True, slots=True)
class Report:
    """The result of :meth:`Store.verify`."""

    name: str
    digest: str
    checked: int
    """Number of files whose digest was computed, including the base."""
    problems: tuple[str, ...]
    unlisted: tuple[str, ...]
    """Files in the folder that the manifest does not list."""

    @property
    def ok(self) -> bool:
        """Whether the version is valid and its folder holds nothing else."""
        return not self.problems and not self.unlisted


class FolderSource:
    """Versions in a directory of this machine."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def label(self) -> str:
        """The directory."""
        return "package" if self.root == PACKAGED else str(self.root)

    def names(self) -> list[str]:
        """Names of the versions, sorted; a directory that does not exist holds none."""
        if not self.root.is_dir():
            return []
        return sorted(
            entry.name
            for entry in self.root.iterdir()
            if _NAME.fullmatch(entry.name) and not entry.is_symlink()
            if (entry / MANIFEST).is_file()
        )

    def manifest(self, name: str) -> bytes | None:
        """Bytes of a version's manifest; ``None`` if there is none.

        Raises:
            InvalidVersion: the folder or the manifest is a symbolic link, or it is far too long.
        """
        folder = self.root / name
        path = folder / MANIFEST
        if not path.is_file():
            return None
        if folder.is_symlink() or path.is_symlink():
            raise InvalidVersion(f"{path} is reached through a symbolic link; copy it instead")
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise InvalidVersion(f"{path} is too long for a manifest")
        return path.read_bytes()

    def unlisted(self, name: str, manifest: Manifest) -> list[str]:
        """Files of a version's folder that its manifest does not list."""
        listed = {MANIFEST, *manifest.files}
        return [found for found, _ in files_under(self.root / name) if found not in listed]

    def folder(self, name: str, manifest: Manifest, cache_dir: Path) -> Path:
        """The version's own folder."""
        return self.root / name


class RemoteSource:
    """Versions at an fsspec URL.

    Raises:
        RemoteUnreadable: the URL cannot be used; every method may raise it too.
    """

    def __init__(self, url: str) -> None:
        self._remote = RemoteFolder(url)

    @property
    def label(self) -> str:
        """The URL."""
        return self._remote.url

    def names(self) -> list[str]:
        """Names of the versions, sorted."""
        return [
            name
            for name in self._remote.folders()
            if _NAME.fullmatch(name) and MANIFEST in self._remote.files(name)
        ]

    def manifest(self, name: str) -> bytes | None:
        """Bytes of a version's manifest; ``None`` if there is none."""
        if MANIFEST not in self._remote.files(name):
            return None
        return self._remote.read(f"{name}/{MANIFEST}", most=_MAX_MANIFEST_BYTES)

    def unlisted(self, name: str, manifest: Manifest) -> list[str]:
        """Files of a version's folder that its manifest does not list."""
        listed = {MANIFEST, *manifest.files}
        return [found for found in self._remote.files(name) if found not in listed]

    def folder(self, name: str, manifest: Manifest, cache_dir: Path) -> Path:
        """A copy in the cache, one for each content.

        Raises:
            DigestMismatch: the fetched bytes are not those that the manifest lists.
            CannotWrite: the cache has no room for it.
        """
        folder = cache_dir / "versions" / f"{name}-{manifest.digest}"
        # The model card is no part of the digest, so a cached copy may hold an older one.
        if mismatches(folder, manifest.files):
            with new_folder(folder) as temporary:
                for file, spec in manifest.files.items():
                    # Do not fill the disk with a file that would be refused.
                    found = self._remote.size(f"{name}/{file}")
                    if found is not None and found != spec.bytes:
                        raise DigestMismatch(
                            f"version {name!r} at {self.label}: {file} has {found} bytes instead "
                            f"of {spec.bytes}"
                        )
                    self._remote.download(f"{name}/{file}", temporary / file)
                (temporary / MANIFEST).write_bytes(
                    self._remote.read(f"{name}/{MANIFEST}", most=_MAX_MANIFEST_BYTES)
                )
                require_match(f"version {name!r}", temporary, manifest.files)
        return folder


class Store:
    """Versions of one or several sources.

    Args:
        sources: searched in this order; the first that has a name wins.
        cache_dir: where remote versions and bases are copied to (default: :func:`cache_dir`).
    """

    def __init__(self, sources: Sequence[Source], cache_dir: Path | None = None) -> None:
        self.sources = tuple(sources)
        self._cache_dir = cache_dir or default_cache_dir()

    def names(self) -> list[str]:
        """Names of all versions, sorted, whether usable or not.

        Raises:
            ModelStoreError: a source cannot be read.
        """
        return sorted({name for source in self.sources for name in source.names()})

    def list(self) -> list[StoredVersion]:
        """All versions, by name.

        Raises:
            InvalidVersion: a manifest cannot be used.
            ModelStoreError: a source cannot be read.
        """
        return [self.get(name) for name in self.names()]

    def get(self, name: str) -> StoredVersion:
        """A version by its name.

        Raises:
            UnknownVersion: no source has it.
            InvalidVersion: its manifest cannot be used.
            ModelStoreError: a source cannot be read.
        """
        if _NAME.fullmatch(name):
            for source in self.sources:
                data = source.manifest(name)
                if data is not None:
                    return StoredVersion(
                        parse_manifest(data, f"{source.label}/{name}", name), source
                    )
        known = ", ".join(self.names()) or "none"
        raise UnknownVersion(f"no model version is called {name[:64]!a}; known: {known}")

    def verify(self, name: str) -> Report:
        """Check every digest of a version and of its base.

        Raises:
            UnknownVersion: no source has it.
            InvalidVersion: its manifest cannot be used.
            ModelStoreError: a source cannot be read.
        """
        version = self.get(name)
        manifest = version.manifest
        problems: list[str] = []
        checked = 0
        try:
            folder = version.source.folder(name, manifest, self._cache_dir)
            problems += mismatches(folder, manifest.files)
            checked += len(manifest.files)
            if not problems:
                require_harmless(folder, manifest.files)
        except InvalidVersion as error:
            problems.append(str(error))
        try:
            find_base(manifest.base, self._cache_dir)
            checked += 1
        except ModelStoreError as error:
            problems.append(str(error))
        unlisted = version.source.unlisted(name, manifest)
        return Report(name, manifest.digest, checked, tuple(problems), tuple(unlisted))

    def add(self, path: Path, *, to: Path | None = None) -> StoredVersion:
        """Check a version folder and copy it atomically into a directory source.

        Adding the same version again does nothing.

        Args:
            path: the folder that holds the version's ``manifest.json``.
            to: directory to copy into; by default the first source that is a directory.

        Raises:
            InvalidVersion: the folder is no version, is damaged, holds files that the manifest
                does not list, or another version of that name exists.
            CannotWrite: the directory cannot be written or the disk is full.
        """
        manifest = check_folder(path)
        target_source = FolderSource(to) if to is not None else self._writable()
        existing = target_source.manifest(manifest.name)
        if existing is not None:
            there = parse_manifest(existing, target_source.label, manifest.name)
            if there != manifest:
                raise InvalidVersion(
                    f"{target_source.label} already has another version called "
                    f"{manifest.name!r}; versions never change: choose a new name"
                )
            return StoredVersion(there, target_source)
        with new_folder(target_source.root / manifest.name) as temporary:
            for name in [*manifest.files, MANIFEST]:
                target = temporary / name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path / name, target, follow_symlinks=False)
            # The copy is checked as well, not only the original.
            require_match(f"the copy of {manifest.name!r}", temporary, manifest.files)
        return StoredVersion(manifest, target_source)

    def _writable(self) -> FolderSource:
        for source in self.sources:
            if isinstance(source, FolderSource):
                return source
        raise InvalidVersion("no source is a directory of this machine: name one to add to")


def default_cache_dir() -> Path:
    """``REQUERY_CACHE_DIR``, else the user's cache directory."""
    if configured := os.environ.get(CACHE_VARIABLE):
        return Path(configured).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("requery", appauthor=False))


def open_store(sources: Iterable[str] | None = None, cache_dir: Path | None = None) -> Store:
    """A store over the given paths or URLs (default: ``REQUERY_MODEL_SOURCES``).

    The versions that ship with Requery are always the last source.

    Raises:
        ModelStoreError: a URL cannot be used.
    """
    if sources is None:
        sources = os.environ.get(SOURCES_VARIABLE, "").split(",")
    named = [open_source(item.strip()) for item in sources if item.strip()]
    return Store([*named, FolderSource(PACKAGED)], cache_dir)


def open_source(place: str) -> Source:
    """The source at a path or fsspec URL.

    Raises:
        ModelStoreError: the URL cannot be used.
    """
    if place.startswith("file://"):
        return FolderSource(Path(place.removeprefix("file://")))
    return RemoteSource(place) if "://" in place else FolderSource(Path(place).expanduser())


def parse_manifest(data: bytes, where: str, name: str | None = None) -> Manifest:
    """Read a manifest; ``name``, if given, is what its folder is called.

    Raises:
        InvalidVersion: it is no manifest, or its name is not its folder's.
    """
    try:
        manifest = Manifest.model_validate_json(data)
    except ValidationError as error:
        raise InvalidVersion(f"{where}: manifest.json: {_in_words(error)}") from error
    if name is not None and manifest.name != name:
        raise InvalidVersion(
            f"{where}: manifest.json says that the version is called {manifest.name!r}"
        )
    return manifest


def check_folder(path: Path) -> Manifest:
    """The manifest of a version folder in which everything is as it should be.

    Raises:
        InvalidVersion: no or a bad manifest, a wrong digest, a link, a pickle, a file that names
            code, an unlisted file.
    """
    manifest_path = path / MANIFEST
    if not manifest_path.is_file():
        raise InvalidVersion(f"{path} holds no {MANIFEST}: it is no version folder")
    require_no_traps(path)
    for name, _ in files_under(path):
        require_harmless_name(name, path)
    if manifest_path.stat().st_size > _MAX_MANIFEST_BYTES:
        raise InvalidVersion(f"{manifest_path} is too long for a manifest")
    manifest = parse_manifest(manifest_path.read_bytes(), str(path))
    require_match(f"version {manifest.name!r}", path, manifest.files)
    require_harmless(path, manifest.files)
    if extra := FolderSource(path.parent).unlisted(path.name, manifest):
        raise InvalidVersion(
            f"{path} holds files that the manifest does not list: {', '.join(extra)}"
        )
    return manifest


def pack_version(
    folder: Path,
    *,
    name: str,
    base: BaseSpec,
    weights: WeightsSpec,
    prompt: PromptSpec,
    decoding: DecodingSpec,
    filters: FilterSpec | None = None,
    spelling: SpellingSpec | None = None,
    catalogue: CatalogueSpec | None = None,
    description: str = "",
    training: dict[str, object] | None = None,
    evaluation: dict[str, object] | None = None,
) -> Manifest:
    """Make a version of a folder with weights and a model card: write its manifest.

    Every file of the folder becomes part of the version. Call it again after a file or a record has
    changed (a figure in the model card).

    Raises:
        InvalidVersion: the folder holds a link, a kind of file that no version may have or one
            that names code, or a field is not valid.
        CannotWrite: the manifest cannot be written.
    """
    # The oldest possible, so that older programs can read it.
    schema = 1 if spelling is None else SPELLING_SCHEMA
    if catalogue is not None or (spelling is not None and spelling.synonyms_file is not None):
        schema = CATALOGUE_SCHEMA
    files = {}
    require_no_traps(folder)
    _forget_training_machine(folder)
    for file, path in files_under(folder):
        if file == MANIFEST or path.name.startswith(TEMPORARY):
            continue
        require_harmless_name(file, folder)
        files[file] = spec_of(path)
    require_harmless(folder, files)
    try:
        manifest = Manifest(
            schema_version=schema,
            name=name,
            description=description,
            base=base,
            weights=weights,
            prompt=prompt,
            decoding=decoding,
            filter=filters or FilterSpec(),
            spelling=spelling,
            catalogue=catalogue,
            files=files,
            training=training or {},
            evaluation=evaluation or {},
        )
    except ValidationError as error:
        raise InvalidVersion(f"{folder}: {_in_words(error)}") from error
    text = manifest.model_dump_json(indent=2) + "\n"
    write_atomically(folder / MANIFEST, text.encode())
    return manifest


def _forget_training_machine(folder: Path) -> None:
    """Remove the base's path on the training machine from PEFT's configuration.

    The manifest names the base, and versions are published.
    """
    path = folder / "adapter_config.json"
    if path.is_symlink() or not path.is_file():
        return
    config = json.loads(path.read_bytes())
    if config.get("base_model_name_or_path") is not None:
        config["base_model_name_or_path"] = None
        write_atomically(path, (json.dumps(config, indent=2, sort_keys=True) + "\n").encode())


def _in_words(error: ValidationError) -> str:
    """The first error in a manifest, in characters that any terminal can show."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"]) or "the file"
    return f"{ascii(place)[1:-1][:200]}: {ascii(first['msg'])[1:-1]}"
