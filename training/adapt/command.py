"""``requery adapt``: a version of one's own from a product list."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast, get_args

import structlog
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
    searches: Annotated[
        list[Path] | None,
        typer.Option(
            help="A log of searches: query, and count, product id, event if there are any; or "
            "OpenSearch's ubi_queries and ubi_events (give the option twice)."
        ),
    ] = None,
    judgements: Annotated[
        Path | None, typer.Option(help="Grades: query, product id, grade (more is better).")
    ] = None,
    synonyms: Annotated[
        Path | None,
        typer.Option(help="The shop's synonyms in Solr's format ('a, b' and 'a => b')."),
    ] = None,
    queries: Annotated[
        int, typer.Option(min=20, help="Most queries that are tried to choose the threshold.")
    ] = 300,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Do not ask the model: keep the threshold, and write no report."
        ),
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--catalogue-check/--no-catalogue-check",
            help="Drop rewrites that find nothing, or nothing new, in the titles when serving.",
        ),
    ] = True,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the record in JSON instead of text.")
    ] = False,
) -> None:
    """Make a version that knows a shop's products. After a kill, run it again to go on."""
    if file_format is not None and file_format not in get_args(Format):
        _die(f"--format is one of {', '.join(get_args(Format))}, not {file_format!r}", 2)
    # Standard output is for the record.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
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
                searches=tuple(searches or ()),
                judgements=judgements,
                synonyms=synonyms,
                queries=queries,
                quick=quick,
                check=check,
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


def _lines(record: Mapping[str, Any]) -> list[str]:
    """The record in words."""
    read = record["catalogue"]
    learnt = record["language"]
    faults = {
        "without_title": "without a title", "repeated": "repeated", "bad_rows": "unreadable",
        "cut": "with a title cut at 2,000 characters",
    }  # fmt: skip
    left = [f"{read[key]} {text}" for key, text in faults.items() if read[key]]
    rows = f"{read['rows']} rows, {read['products']} products"
    return [
        rows + (f" ({', '.join(left)})" if left else ""),
        *(f"  {line}" for line in read["bad_rows_told"]),
        f"{learnt['new_words']} words and {learnt['shop_brands']} brands of the shop",
        *_tried(record),
        *(f"warning: {text}" for text in record["warnings"]),
        (
            f"{'made' if record['made'] else 'already there:'} {record['folder']} "
            f"({str(record['digest'])[:12]})"
        ),
        (
            f"serve it: REQUERY_MODEL_SOURCES={Path(str(record['folder'])).parent} "
            f"REQUERY_DEFAULT_VERSION={record['name']} requery serve"
        ),
    ]


def _tried(record: Mapping[str, Any]) -> list[str]:
    if "trial" not in record:
        return []
    trial = record["trial"]
    setting, rows = trial["settings"]["adapted"], trial["figures"]
    note = " (simulated)" if trial["simulated"] else ""

    def said(name: str) -> str:
        mean, low, high = rows[name]["gain"]
        return f"{mean:+.3f} [{low:+.3f}, {high:+.3f}], {rows[name]['harmed'][0]:.1%} harmed"

    return [
        (
            f"relevance of at least {setting['min_relevance']}, up to {setting['max_rewrites']} "
            "rewrites"
        ),
        f"recall in {trial['depth']} results{note}: {rows['adapted']['plain_recall'][0]:.3f}",
        f"  with its rewrites {said('adapted')}",
        f"  with {record['from']['version']}'s {said('from')}",
        f"report: {record['folder']}-report/report.html",
    ]


def _die(message: str, code: int = 1) -> NoReturn:
    typer.echo(f"requery adapt: {message}", err=True)
    raise typer.Exit(code) from None
