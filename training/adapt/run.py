"""From a shop's products to a version of its own.

What is learnt of the products is made again by each run, in seconds. What takes minutes, the
model's candidates, is kept in a folder beside the version (``.adapt-<name>``), so that the same
command goes on after a kill. The version appears at once and whole, at the end.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model_store.files import new_folder
from model_store.manifest import Manifest
from model_store.store import (
    FolderSource,
    StoredVersion,
    default_cache_dir,
    open_store,
    pack_version,
    parse_manifest,
)
from service.precompute.readers import Format
from training.adapt.catalogue import Catalogue, read_catalogue
from training.adapt.language import Language, learn_language
from training.errors import RunError

METHOD = 1
"""Raised when the same products would give another version."""
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Options:
    """What a user asks for.

    Attributes:
        products: file, folder, or ``-``.
        name: of the new version.
        out: folder of versions that gets it.
        base_version: the version to start from.
        kind: format of the products; default: by name or content.
        columns: field of a product -> column.
    """

    products: Path
    name: str
    out: Path
    base_version: str
    kind: Format | None = None
    columns: Mapping[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Adapted:
    """The result: the version, and what is known of it.

    Attributes:
        manifest: of the version.
        folder: where it is.
        made: whether this run made it, or it was there.
        record: what was read and chosen.
    """

    manifest: Manifest
    folder: Path
    made: bool
    record: Mapping[str, Any]


def adapt(options: Options) -> Adapted:
    """Make a shop's version.

    Raises:
        TrainingError: the products cannot be used, or the name is taken.
        ModelStoreError: the version to start from is missing or damaged, or a folder cannot be
            written.
    """
    if not _NAME.fullmatch(options.name):
        raise RunError(
            f"--name {options.name[:64]!r}: a version's name has lower-case letters, digits, "
            "'.', '_' and '-', and begins with a letter or digit"
        )
    base = open_store().get(options.base_version)
    folder = base.folder(default_cache_dir())
    catalogue = read_catalogue(options.products, options.columns, options.kind)
    fingerprint = _fingerprint(catalogue, base)
    target = options.out / options.name
    if there := _existing(target, fingerprint):
        return Adapted(there, target, made=False, record=there.training["adapted"])
    language = learn_language(catalogue, base.manifest, folder)
    record: dict[str, Any] = {
        "fingerprint": fingerprint,
        "from": {"version": base.name, "digest": base.digest},
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "catalogue": catalogue.summary(),
        "language": {
            "words": len(language.words), "new_words": language.shop_words,
            "pairs": len(language.pairs), "brands": len(language.brands),
            "shop_brands": len(language.shop_brands),
        },
        "warnings": warnings(catalogue),
    }  # fmt: skip
    manifest = _write_version(options, base.manifest, folder, language, record)
    return Adapted(manifest, target, made=True, record=record)


def warnings(catalogue: Catalogue) -> list[str]:
    """What the data cannot tell, for people."""
    found = []
    if len(catalogue) <= 1000:
        found.append(
            f"{len(catalogue)} products: every search finds nearly all that there is, so recall "
            "says little; read the examples"
        )
    if not catalogue.brands:
        found.append(
            "no column of brands: they are guessed by the words that titles begin with; name the "
            "column with --brand-column"
        )
    if catalogue.bad.count > catalogue.rows // 20:
        found.append(f"{catalogue.bad.count} rows could not be read; see bad_rows_told")
    if 20 * catalogue.same_title > len(catalogue):
        found.append(f"{catalogue.same_title} products share their title with another one")
    return found


def _fingerprint(catalogue: Catalogue, base: StoredVersion) -> str:
    parts = (str(METHOD), base.digest, catalogue.digest)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _existing(target: Path, fingerprint: str) -> Manifest | None:
    """The manifest of the version that is there, if it is made of the same products."""
    data = FolderSource(target.parent).manifest(target.name)
    if data is None:
        if target.exists() and any(target.iterdir()):
            raise RunError(f"{target} holds something else; choose another --name or --out")
        return None
    manifest = parse_manifest(data, str(target), target.name)
    if manifest.training.get("adapted", {}).get("fingerprint") != fingerprint:
        raise RunError(
            f"{target} is a version made of other products, and versions never change; choose "
            "another --name"
        )
    return manifest


def _write_version(
    options: Options, base: Manifest, folder: Path, language: Language, record: dict[str, Any]
) -> Manifest:
    """Write the version into a temporary folder that gets its name at the end."""
    with new_folder(options.out / options.name) as temporary:
        named = {base.filter.brands_file, "README.md"}
        if base.spelling is not None:
            named |= {base.spelling.words_file, base.spelling.pairs_file}
        for file in base.files:
            if file not in named:
                (temporary / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / file, temporary / file)
        language.write(base, temporary)
        (temporary / "README.md").write_text(_card(options, record), encoding="utf-8")
        return pack_version(
            temporary,
            name=options.name,
            base=base.base,
            weights=base.weights,
            prompt=base.prompt,
            decoding=base.decoding,
            filters=base.filter,
            spelling=base.spelling,
            description=f"{base.name}, adapted to {record['catalogue']['products']} products",
            training={"adapted": record},
        )


def _card(options: Options, record: Mapping[str, Any]) -> str:
    facts = json.dumps(record, indent=1, sort_keys=True)
    return (
        f"# {options.name}\n\nMade by `requery adapt` from `{record['from']['version']}`: the same "
        "weights, with words, pairs of words and brands of a shop's own products. Not trained.\n\n"
        f"```json\n{facts}\n```\n"
    )
