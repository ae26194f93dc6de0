"""``requery precompute``: fill the cache with the most frequent queries of a log."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn, cast

import structlog
import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from model_store.errors import ModelStoreError
from service.config.service_links import service_links
from service.config.settings import Settings
from service.errors import RequeryError
from service.precompute.errors import PrecomputeError
from service.precompute.journal import Result
from service.precompute.prepare import (
    DEFAULT_RATE,
    Options,
    Prepared,
    with_engine,
    with_ray,
    with_service,
)
from service.precompute.readers import FORMATS, STDIN, Format, QueryLog, read_counts
from service.precompute.signals import Signals, Stopped

_FAILED = 1
_WRONG_OPTIONS = 2
_MAX_REASONS = 3


def precompute(
    queries: Annotated[
        Path,
        typer.Argument(
            help="Queries and how often each was searched: Parquet, CSV or TSV with a header, JSON "
            "Lines, or a log of counts ('sort | uniq -c'); also gzipped, a folder of such "
            "files, or '-' for standard input."
        ),
    ],
    *,
    query_column: Annotated[
        str | None,
        typer.Option(help="Column of the query (default: query, search_term, keyword, ...)."),
    ] = None,
    count_column: Annotated[
        str | None,
        typer.Option(
            help="Column of the count (default: count, frequency, searches, ...; without one each "
            "row is one search). The output names the columns taken."
        ),
    ] = None,
    file_format: Annotated[
        str | None,
        typer.Option(
            "--format", help="parquet, csv, tsv, jsonl or counts (default: by the file's name)."
        ),
    ] = None,
    delimiter: Annotated[
        str | None,
        typer.Option(
            help="Character between the columns of CSV, such as ';' or 'tab' (default: found in "
            "the header, or named by a first line 'sep=;')."
        ),
    ] = None,
    top: Annotated[int | None, typer.Option(min=1, help="At most so many queries.")] = None,
    coverage: Annotated[
        float, typer.Option(min=0.0001, max=1.0, help="Stop at this share of all searches.")
    ] = 0.9,
    version_name: Annotated[
        str | None,
        typer.Option(
            help="Model version (default: REQUERY_DEFAULT_VERSION; with --url the service's)."
        ),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            help="Ask the service at this address, which shares its engine, instead of starting "
            "an engine and writing to REQUERY_REDIS_URL."
        ),
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(help="With --url: file of the API key (default: REQUERY_API_KEY)."),
    ] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.01, help="With --url: queries a second (default: 5).")
    ] = None,
    keep_case: Annotated[
        bool,
        typer.Option(
            "--keep-case", help="With --url: the version tells upper case from lower case."
        ),
    ] = False,
    concurrency: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Without --url: queries under way at a time (default: enough to fill the engine).",
        ),
    ] = None,
    ray: Annotated[
        bool,
        typer.Option(
            "--ray",
            help="Spread the work over a Ray cluster: the one at RAY_ADDRESS, else the one on "
            "this machine.",
        ),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            min=1, help="With --ray: engines, at most (default: as many as there is room for)."
        ),
    ] = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Queries that a kill can lose, at most.")
    ] = 256,
    journal: Annotated[
        Path | None,
        typer.Option(
            help="Where to note what is done (default: beside the input, QUERIES.journal; for "
            "a pipe stdin.journal in the current folder)."
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Report in JSON on standard output.")
    ] = False,
) -> None:
    """Fill the cache with the most frequent queries. After a kill, run it again to go on."""
    if url is None and (rate is not None or keep_case or key_file is not None):
        _die("--rate, --keep-case and --key-file only go with --url", _WRONG_OPTIONS)
    if url is not None and concurrency is not None:
        _die("--concurrency does not go with --url; there --rate bounds the load", _WRONG_OPTIONS)
    if ray and url is not None:
        _die("--ray does not go with --url", _WRONG_OPTIONS)
    if workers is not None and not ray:
        _die("--workers only goes with --ray", _WRONG_OPTIONS)
    kind, delimiter = _format(file_format), _delimiter(delimiter)
    if delimiter is not None and kind not in (None, "csv"):
        _die("--delimiter only goes with --format csv", _WRONG_OPTIONS)
    options = Options(
        journal=journal or _journal_of(queries),
        version_name=version_name,
        top=top,
        coverage=coverage,
        batch=batch_size,
        concurrency=concurrency,
        url=url,
        key_file=key_file,
        rate=DEFAULT_RATE if rate is None else rate,
        fold_case=not keep_case,
        ray=ray,
        workers=workers,
    )
    settings = _settings()
    if links := service_links():
        typer.echo(
            f"requery: no settings, but Kubernetes' service links: {', '.join(links)}", err=True
        )
    # Standard output is for the report, and what matters of Redis' troubles is in it.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    try:
        log = read_counts(
            queries,
            kind=kind if delimiter is None else "csv",
            query_column=query_column,
            count_column=count_column,
            delimiter=delimiter,
        )
        code = asyncio.run(_precompute(log, options, settings, as_json=as_json))
    except (PrecomputeError, ModelStoreError, RequeryError) as error:
        _die(str(error))
    except (asyncio.CancelledError, KeyboardInterrupt):
        _die("ended at once; run this again to go on", 128 + signal.SIGINT)
    if code:
        raise SystemExit(code)


async def _precompute(log: QueryLog, options: Options, settings: Settings, *, as_json: bool) -> int:
    """The exit status."""
    signals = Signals()
    prepare = with_service if options.url is not None else with_ray if options.ray else with_engine
    with signals.handled():
        try:
            async with prepare(log.counts, options, settings, signals.unless) as prepared:
                await _go(prepared, signals, options, log, as_json=as_json)
        except Stopped:
            typer.echo("requery: stopped before the first query", err=True)
            return 128 + (signals.first or 0)
    tally = prepared.run.tally
    if tally.stopped:
        typer.echo("requery: stopped; run this again to go on", err=True)
        return 128 + (signals.first or 0)
    return _FAILED if tally.count(Result.FAILED) else 0


async def _go(
    prepared: Prepared, signals: Signals, options: Options, log: QueryLog, *, as_json: bool
) -> None:
    run = prepared.run
    # Before the run, because a wrong column makes it worthless.
    typer.echo(f"columns    {log.columns()}", err=as_json)

    async def stop_when_told() -> None:
        await signals.came.wait()
        run.stop()

    begun = time.monotonic()
    watching = asyncio.create_task(stop_when_told())
    try:
        with _progress(prepared):
            await run.go()
    finally:
        watching.cancel()
        # What was done is told even if the run ends with an error.
        seconds = time.monotonic() - begun
        if as_json:
            typer.echo(json.dumps(_figures(prepared, options, log, seconds), indent=2))
        else:
            _report(prepared, options, seconds)


@contextmanager
def _progress(prepared: Prepared) -> Iterator[None]:
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
    task = bar.add_task(prepared.about.version, total=prepared.head)
    prepared.run.on_progress(lambda done: bar.update(task, completed=done))
    with bar:
        yield


def _figures(prepared: Prepared, options: Options, log: QueryLog, seconds: float) -> dict[str, Any]:
    """What was done, for programs; shares of all searches in [0, 1]."""
    tally, plan = prepared.run.tally, prepared.plan
    return {
        "version": prepared.about.version,
        "digest": prepared.about.digest,
        "query_column": log.query_column,
        "count_column": log.count_column,
        "queries": len(plan.queries),
        "chosen": prepared.head,
        "chosen_share": plan.share(range(prepared.head)),
        **{result.name.lower(): tally.count(result) for result in Result},
        "earlier": len(tally.before),
        "reasons": dict(Counter(tally.reasons.values()).most_common()),
        "blank_searches": plan.blank,
        "coverage": plan.share(tally.cached),
        "seconds": round(seconds, 3),
        "stopped": tally.stopped,
        "journal": str(options.journal),
    }


def _report(prepared: Prepared, options: Options, seconds: float) -> None:
    """What was done, in words, on standard output."""
    tally, plan = prepared.run.tally, prepared.plan
    generated = tally.count(Result.GENERATED)
    rate = generated / seconds if seconds else 0.0
    share = plan.share(range(prepared.head))
    earlier = f", {len(tally.before):,} done by an earlier run" if tally.before else ""
    lines = [
        f"version    {prepared.about.version} ({prepared.about.digest[:12]})",
        f"queries    {prepared.head:,} of {len(plan.queries):,}, {share:.1%} of all searches",
        f"generated  {generated:,} ({rate:.1f} a second)",
        f"skipped    {tally.count(Result.CACHED):,} in the cache already{earlier}",
        f"failed     {tally.count(Result.FAILED):,}",
    ]
    lines += [
        f"           {times:,}: {reason}"
        for reason, times in Counter(tally.reasons.values()).most_common(_MAX_REASONS)
    ]
    if blank := plan.blank:
        lines.append(f"blank      {blank:,.0f} searches without a query")
    if refused := tally.count(Result.REFUSED):
        lines.append(f"refused    {refused:,} that can never be rewritten")
    lines.append(f"coverage   {plan.share(tally.cached):.1%} of all searches are in the cache now")
    if tally.count(Result.FAILED) or tally.stopped:
        lines.append(f"journal    {options.journal} (run the same again to go on)")
    typer.echo("\n".join(lines))


def _journal_of(queries: Path) -> Path:
    kept = queries.is_dir() or queries.is_file() or not queries.exists()
    # A pipe is gone, and its folder (/dev/fd) cannot be written.
    piped = queries == STDIN or not kept
    return Path("stdin.journal") if piped else queries.with_name(f"{queries.name}.journal")


def _format(given: str | None) -> Format | None:
    if given is not None and given not in FORMATS.values():
        known = ", ".join(dict.fromkeys(FORMATS.values()))
        _die(f"--format is one of {known}", _WRONG_OPTIONS)
    return cast("Format | None", given)


def _delimiter(given: str | None) -> str | None:
    delimiter = "\t" if given in ("tab", "\\t") else given
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        _die("--delimiter is one character that is no quotation mark, or 'tab'", _WRONG_OPTIONS)
    return delimiter


def _settings() -> Settings:
    try:
        return Settings()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        _die(f"REQUERY_{name}: {first['msg']}", _WRONG_OPTIONS)


def _die(message: str, code: int = _FAILED) -> NoReturn:
    """End with one line on standard error."""
    line = " ".join(message.split())
    sys.stderr.write(f"requery: {line}{os.linesep}")
    raise SystemExit(code)
