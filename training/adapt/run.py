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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from model_store.files import new_folder, writing
from model_store.manifest import Manifest, SpellingSpec
from model_store.store import (
    FolderSource,
    StoredVersion,
    default_cache_dir,
    open_store,
    pack_version,
    parse_manifest,
)
from service.engine.synonyms import write_synonyms
from service.filtering.catalogue import INDEX_FILE, TermIndex, build_term_index
from service.precompute.readers import STDIN, Format, parts_of
from training.adapt.catalogue import Catalogue, read_catalogue
from training.adapt.evidence import Evidence, read_evidence, read_synonyms
from training.adapt.language import BRANDS, PAIRS, SYNONYMS, WORDS, learn_language
from training.adapt.outcome import FEW, Shop, try_shop
from training.adapt.report import as_html, next_steps
from training.adapt.synonyms import shop_synonyms
from training.adapt.trial import MOST_HARMED
from training.data.search import SearchIndex
from training.errors import RunError
from training.folder import write_json

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
        searches: logs of searches, with clicks if there are any.
        judgements: grades.
        synonyms: the shop's own list, in Solr's format.
        queries: most queries to try.
        quick: try none, and keep the settings of the version before.
        check: rewrites are looked up in the catalogue when they are served.
    """

    products: Path
    name: str
    out: Path
    base_version: str
    kind: Format | None = None
    columns: Mapping[str, str | None] = field(default_factory=dict)
    searches: Sequence[Path] = ()
    judgements: Path | None = None
    synonyms: Path | None = None
    queries: int = 300
    quick: bool = False
    check: bool = True


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
    evidence = read_evidence(options.searches, options.judgements)
    given = read_synonyms(options.synonyms) if options.synonyms else {}
    fingerprint = _fingerprint(catalogue, evidence, given, base, options)
    target = options.out / options.name
    if there := _existing(target, fingerprint):
        return Adapted(there, target, made=False, record=there.training["adapted"])
    language = learn_language(catalogue, base.manifest, folder, evidence.searches)
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
        "evidence": evidence.summary(catalogue.titles),
        "warnings": warnings(catalogue),
    }  # fmt: skip
    filters = base.manifest.filter.model_copy(update={"brands_file": BRANDS})
    spelling = (base.manifest.spelling or SpellingSpec(words_file=WORDS)).model_copy(
        update={"words_file": WORDS, "pairs_file": PAIRS, "synonyms_file": SYNONYMS}
    )
    index = SearchIndex(catalogue.titles)
    synonyms = shop_synonyms(index, given)
    record["language"]["synonyms"] = len(synonyms)
    work = options.out / f".adapt-{options.name}"
    with writing(options.out):
        (work / fingerprint).mkdir(parents=True, exist_ok=True)
    checked = None
    path = work / fingerprint / INDEX_FILE
    if options.check:
        # The age of the catalogue is that of the export, not of the command.
        checked = build_term_index(catalogue.searched(), path, made_at=_taken_at(options.products))
    if not options.quick:
        terms = TermIndex.load(path) if checked is not None else None
        shop = Shop(catalogue, evidence, base, folder, language, spelling, index, synonyms, terms)
        trial = try_shop(shop, options.queries, work / fingerprint)
        if trial is None:
            record["warnings"].append("no query could be made of the titles: nothing was tried")
        else:
            record["warnings"] += _trial_warnings(trial)
            filters = filters.model_copy(update=trial["settings"]["adapted"])
            report = {"name": options.name, **record, "trial": trial}
            report["next"] = next_steps(report)
            record["trial"] = {k: v for k, v in trial.items() if k != "examples"}
            with new_folder(options.out / f"{options.name}-report") as temporary:
                write_json(temporary / "report.json", report)
                (temporary / "report.html").write_text(as_html(report), encoding="utf-8")
    with new_folder(target) as temporary:
        _write_files(temporary, base.manifest, folder)
        language.write(temporary)
        write_synonyms(synonyms, temporary / SYNONYMS)
        if checked is not None:
            shutil.copyfile(work / fingerprint / INDEX_FILE, temporary / INDEX_FILE)
        (temporary / "README.md").write_text(_card(options, record), encoding="utf-8")
        manifest = pack_version(
            temporary,
            name=options.name,
            base=base.manifest.base,
            weights=base.manifest.weights,
            prompt=base.manifest.prompt,
            decoding=base.manifest.decoding,
            filters=filters,
            spelling=spelling,
            catalogue=checked,
            description=f"{base.name}, adapted to {len(catalogue)} products",
            training={"adapted": record},
        )
    shutil.rmtree(work, ignore_errors=True)
    return Adapted(manifest, target, made=True, record=record)


def _trial_warnings(trial: Mapping[str, Any]) -> list[str]:
    found = []
    queries = sum(trial["queries"].values())
    if queries < FEW:
        found.append(
            f"{queries} queries are too few to choose by: the threshold is that of the version "
            "before"
        )
    figures = trial["figures"].get("adapted", {})
    if "harmed" in figures and figures["harmed"][0] > MOST_HARMED:
        found.append(f"{figures['harmed'][0]:.1%} of the queries are harmed, more than 2 %")
    return found


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


def _fingerprint(
    catalogue: Catalogue,
    evidence: Evidence,
    given: Mapping[str, Sequence[str]],
    base: StoredVersion,
    options: Options,
) -> str:
    asked = f"{options.quick} {options.queries} {options.check}"
    parts = (str(METHOD), base.digest, catalogue.digest, evidence.digest, json.dumps(given), asked)
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


def _write_files(target: Path, before: Manifest, folder: Path) -> None:
    """Copy weights and configuration of the version before."""
    made = {before.filter.brands_file, WORDS, PAIRS, BRANDS, SYNONYMS, "README.md"}
    if before.spelling is not None:
        spelling = before.spelling
        made |= {spelling.words_file, spelling.pairs_file, spelling.synonyms_file}
    if before.catalogue is not None:
        made.add(before.catalogue.index_file)
    for file in before.files:
        if file not in made:
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / file, target / file)


def _taken_at(products: Path) -> datetime:
    """When the products were exported: the newest file's time; now for standard input."""
    if products == STDIN:
        return datetime.now(UTC)
    return datetime.fromtimestamp(max(p.stat().st_mtime for p in parts_of(products)), UTC)


def _card(options: Options, record: Mapping[str, Any]) -> str:
    facts = json.dumps(record, indent=1, sort_keys=True)
    return (
        f"# {options.name}\n\nMade by `requery adapt` from `{record['from']['version']}`: the same "
        "weights, with words, pairs of words and brands of a shop's own products. Not trained.\n\n"
        f"```json\n{facts}\n```\n"
    )
