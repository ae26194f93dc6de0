"""``requery models``: look at, check, add and materialise model versions."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from model_store.errors import ModelStoreError
from model_store.materialise import materialise, materialised_dir
from model_store.prune import leftovers, remove
from model_store.store import Store, StoredVersion, default_cache_dir, open_store

app = typer.Typer(
    help="Look at, check, add and materialise model versions.",
    no_args_is_help=True,
    add_completion=False,
)

_PIPED_WIDTH = 10_000

SourceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--source",
        help="Directory or fsspec URL to search before the packaged versions; may be repeated. "
        "Default: REQUERY_MODEL_SOURCES.",
    ),
]
CacheOption = Annotated[
    Path | None,
    typer.Option(
        "--cache-dir",
        envvar="REQUERY_CACHE_DIR",
        help="Where materialised and fetched models are kept. Default: the user's cache.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
NameArgument = Annotated[str, typer.Argument(help="Name of the version.")]


@app.command("list")
def list_versions(
    source: SourceOption = None, cache_dir: CacheOption = None, as_json: JsonOption = False
) -> None:
    """List all versions; one that cannot be used is shown with the reason."""
    with _errors():
        store = open_store(source, cache_dir)
        rows = [_row(store, name, cache_dir) for name in store.names()]
    if as_json:
        _print_json(rows)
        return
    table = Table("version", "digest", "weights", "size", "base", "source", "materialised")
    for row in rows:
        if "error" in row:
            table.add_row(row["name"], f"[red]{escape(row['error'])}[/red]")
            continue
        table.add_row(
            row["name"],
            row["digest"][:12],
            row["weights"],
            _size(row["bytes"]),
            escape(row["base"]),
            escape(row["source"]),
            "yes" if row["materialised"] else "no",
        )
    _print(table)


@app.command()
def show(
    name: NameArgument,
    source: SourceOption = None,
    cache_dir: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show everything that a version's manifest says."""
    with _errors():
        version = open_store(source, cache_dir).get(name)
    manifest = version.manifest.model_dump(mode="json")
    if as_json:
        _print_json({**manifest, "digest": version.digest, "source": version.source.label})
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_row("version", version.name)
    table.add_row("digest", version.digest)
    table.add_row("source", escape(version.source.label))
    table.add_row("folder", escape(str(materialised_dir(version, cache_dir))))
    for section, value in manifest.items():
        if section in ("name", "files") or not value:
            continue
        shown = value if isinstance(value, str) else json.dumps(value, indent=2)
        table.add_row(section.replace("_", " "), escape(shown))
    for file, spec in manifest["files"].items():
        table.add_row("file", escape(f"{file}  {_size(spec['bytes'])}  {spec['sha256']}"))
    _print(table)


@app.command()
def verify(
    names: Annotated[
        list[str] | None, typer.Argument(help="Versions to check; all if none is named.")
    ] = None,
    source: SourceOption = None,
    cache_dir: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check the digest of every file and of the base; the exit code is 1 if anything is wrong."""
    with _errors():
        store = open_store(source, cache_dir)
        rows = [_verified(store, name) for name in names or store.names()]
    if as_json:
        _print_json(rows)
    else:
        table = Table("version", "checked", "result")
        for row in rows:
            wrong = [*row["problems"], *(f"not in the manifest: {f}" for f in row["unlisted"])]
            result = f"[red]{escape(chr(10).join(wrong))}[/red]" if wrong else "[green]ok[/green]"
            table.add_row(escape(row["name"]), f"{row['checked']} files", result)
        _print(table)
    if not all(row["ok"] for row in rows):
        raise typer.Exit(1)


@app.command()
def add(
    path: Annotated[Path, typer.Argument(help="Folder that holds a version's manifest.json.")],
    to: Annotated[
        Path | None,
        typer.Option(
            "--to", help="Directory to copy into. Default: the first source that is a directory."
        ),
    ] = None,
    source: SourceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check a version folder and copy it into a store, whole or not at all."""
    with _errors():
        version = open_store(source).add(path, to=to)
    if as_json:
        _print_json(
            {"name": version.name, "digest": version.digest, "source": version.source.label}
        )
        return
    typer.echo(f"added {version.name} ({version.digest[:12]}) to {version.source.label}")


@app.command("materialise")
def materialise_version(
    name: NameArgument,
    source: SourceOption = None,
    cache_dir: CacheOption = None,
    as_json: JsonOption = False,
) -> None:
    """Merge a version into the folder of weights that an engine serves, and print its path."""
    with _errors():
        version = open_store(source, cache_dir).get(name)
        started = time.perf_counter()
        if as_json:
            folder = materialise(version, cache_dir)
        else:
            with Console(stderr=True).status(f"materialising {name} (up to a minute)"):
                folder = materialise(version, cache_dir)
    seconds = round(time.perf_counter() - started, 2)
    if as_json:
        _print_json({"name": name, "folder": str(folder), "seconds": seconds})
    else:
        typer.echo(folder)


@app.command()
def prune(
    source: SourceOption = None,
    cache_dir: CacheOption = None,
    yes: Annotated[bool, typer.Option("--yes", help="Remove them; without it they are listed.")] = (
        False
    ),
    as_json: JsonOption = False,
) -> None:
    """Remove materialised weights of versions that no source holds any more."""
    with _errors():
        found = leftovers(open_store(source, cache_dir), cache_dir or default_cache_dir())
        if yes:
            for one in found:
                remove(one)
    if as_json:
        _print_json(
            [{"folder": str(one.folder), "bytes": one.bytes, "removed": yes} for one in found]
        )
        return
    for one in found:
        typer.echo(f"{'removed ' if yes else ''}{one.folder}  {_size(one.bytes)}")
    total = _size(sum(one.bytes for one in found))
    if not found:
        typer.echo("nothing to remove")
    elif not yes:
        typer.echo(f"{total} in all; --yes removes them (name every source that is in use)")


def _row(store: Store, name: str, cache_dir: Path | None) -> dict[str, Any]:
    try:
        version = store.get(name)
    except ModelStoreError as error:
        return {"name": name, "error": str(error)}
    return {
        "name": name,
        "digest": version.digest,
        "description": version.manifest.description,
        "weights": version.manifest.weights.kind,
        "bytes": sum(spec.bytes for spec in version.manifest.files.values()),
        "base": version.manifest.base.source,
        "source": version.source.label,
        "materialised": _has_folder(version, cache_dir),
    }


def _has_folder(version: StoredVersion, cache_dir: Path | None) -> bool:
    # Only a look: the digests are checked when the folder is used.
    return materialised_dir(version, cache_dir or default_cache_dir()).is_dir()


def _verified(store: Store, name: str) -> dict[str, Any]:
    try:
        report = store.verify(name)
    except ModelStoreError as error:
        # What was typed may be nothing that a terminal can show.
        shown = name if name.isprintable() else ascii(name)
        return {"name": shown, "ok": False, "checked": 0, "problems": [str(error)], "unlisted": []}
    return {
        "name": name,
        "ok": report.ok,
        "digest": report.digest,
        "checked": report.checked,
        "problems": list(report.problems),
        "unlisted": list(report.unlisted),
    }


def _print(table: Table) -> None:
    # A pipe has no width, and whoever reads it needs whole lines.
    Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH).print(table)


def _print_json(value: object) -> None:
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"


@contextmanager
def _errors() -> Iterator[None]:
    """One clear line on stderr and exit code 1 for everything that can go wrong on purpose."""
    try:
        yield
    except ModelStoreError as error:
        typer.echo(f"requery: {' '.join(str(error).split())}", err=True)
        raise typer.Exit(1) from None
