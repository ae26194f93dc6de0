"""``requery adapt``: a version of one's own from a product list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, NoReturn, cast, get_args

import typer

from model_store.errors import ModelStoreError
from service.engine.errors import EngineUnavailable
from service.precompute.readers import Format
from training.errors import TrainingError


def adapt(
    *,
    products: Annotated[
        Path,
        typer.Option(
            help="The products: CSV, TSV, JSON Lines or Parquet, also gzipped, a folder of such "
            "files, or '-' for standard input."
        ),
    ],
    name: Annotated[str, typer.Option(help="Name of the new version.")],
    out: Annotated[
        Path, typer.Option(help="Folder of versions that gets it.", file_okay=False)
    ] = Path("my-versions"),
    base_version: Annotated[
        str | None, typer.Option(help="Version to start from (default: the packaged default).")
    ] = None,
    file_format: Annotated[
        str | None,
        typer.Option("--format", help="csv, tsv, jsonl or parquet (default: by the file's name)."),
    ] = None,
    title_column: Annotated[
        str | None, typer.Option(help="Column of the title (default: title, name, ...).")
    ] = None,
    id_column: Annotated[
        str | None, typer.Option(help="Column of the product's id (default: id, sku, ...).")
    ] = None,
    brand_column: Annotated[
        str | None, typer.Option(help="Column of the brand (default: brand, vendor, ...).")
    ] = None,
    category_column: Annotated[
        str | None, typer.Option(help="Column of the category (default: category, type, ...).")
    ] = None,
    description_column: Annotated[
        str | None, typer.Option(help="Column of the description (default: description, ...).")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the record in JSON instead of text.")
    ] = False,
) -> None:
    """Make a version that knows a shop's products. After a kill, run it again to go on."""
    if file_format is not None and file_format not in get_args(Format):
        _die(f"--format is one of {', '.join(get_args(Format))}, not {file_format!r}", 2)
    try:
        from service.config.settings import Settings
        from training.adapt.run import Options
        from training.adapt.run import adapt as run

        done = run(
            Options(
                products=products,
                name=name,
                out=out,
                base_version=base_version or str(Settings.model_fields["default_version"].default),
                kind=cast("Format | None", file_format),
                columns={
                    "title": title_column, "id": id_column, "brand": brand_column,
                    "category": category_column, "description": description_column,
                },
            )
        )  # fmt: skip
    except (TrainingError, ModelStoreError, EngineUnavailable) as error:
        _die(" ".join(str(error).split()))
    except OSError as error:
        _die(f"{error.filename}: {error.strerror}" if error.filename else str(error))
    record = {"name": done.manifest.name, "digest": done.manifest.digest, "made": done.made,
              "folder": str(done.folder), **done.record}  # fmt: skip
    if as_json:
        typer.echo(json.dumps(record, indent=1, sort_keys=True))
        return
    for line in _lines(record):
        typer.echo(line)


def _lines(record: dict[str, object]) -> list[str]:
    """The record in words."""
    read = cast("dict[str, object]", record["catalogue"])
    learnt = cast("dict[str, object]", record["language"])
    faults = {
        "without_title": "without a title", "repeated": "repeated", "bad_rows": "unreadable",
        "cut": "with a title cut at 2,000 characters",
    }  # fmt: skip
    left = [f"{read[key]} {text}" for key, text in faults.items() if read[key]]
    rows = f"{read['rows']} rows, {read['products']} products"
    return [
        rows + (f" ({', '.join(left)})" if left else ""),
        *(f"  {line}" for line in cast("list[str]", read["bad_rows_told"])),
        f"{learnt['new_words']} words and {learnt['shop_brands']} brands of the shop",
        *(f"warning: {text}" for text in cast("list[str]", record["warnings"])),
        (
            f"{'made' if record['made'] else 'already there:'} {record['folder']} "
            f"({str(record['digest'])[:12]})"
        ),
        (
            f"serve it: REQUERY_MODEL_SOURCES={Path(str(record['folder'])).parent} "
            f"REQUERY_DEFAULT_VERSION={record['name']} requery serve"
        ),
    ]


def _die(message: str, code: int = 1) -> NoReturn:
    typer.echo(f"requery adapt: {message}", err=True)
    raise typer.Exit(code) from None
