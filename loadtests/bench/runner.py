"""Runs parts of the benchmark, and writes down what each found as soon as it is known."""

from __future__ import annotations

import asyncio
import resource
import signal
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
import typer
import uvloop

from loadtests.bench import html
from loadtests.bench.plans import WORK
from loadtests.bench.section import Row, Say, Section, table
from loadtests.bench.versions import BenchVersions
from loadtests.queries import Queries, known_queries
from loadtests.report import machine

MOST_S = 3 * 3600.0
"""Bound on one part, whatever hangs."""
FAILED = "failed"
_INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Context:
    """What a part is given.

    Attributes:
        queries: known ones, and never-seen ones.
        version: whose weights all peers get.
        versions: where bench versions are made.
        folder: for logs.
        seed: of arrivals and queries.
        say: tells whoever waits what is being done.
    """

    queries: Queries
    version: str
    versions: BenchVersions
    folder: Path
    seed: int
    say: Say


Part = Callable[[Context], Awaitable[Section]]


def main(
    parts: Sequence[Part],
    out: Path,
    *,
    seed: int,
    version: str,
    more: dict[str, Any] | None = None,
) -> None:
    """Run parts one after the other.

    Args:
        parts: each is run, whatever became of those before it.
        out: JSON file; a table and a page are written beside it.
        seed: of arrivals and queries.
        version: whose weights all peers get.
        more: for the head of the JSON file.

    Raises:
        typer.Exit: a part failed; what the others found is written all the same.
    """
    allow_descriptors()
    known, source = known_queries(seed=seed)
    content: dict[str, Any] = {
        "machine": machine(),
        "version": version,
        "queries": {"known": len(known), "source": source},
        "seed": seed,
        **(more or {}),
        "parts": [],
    }
    sections: list[Section] = []
    for number, part in enumerate(parts):
        context = Context(
            Queries(known, seed=seed),
            version,
            BenchVersions.under(WORK),
            WORK / "logs" / str(number),
            seed,
            say,
        )
        context.folder.mkdir(parents=True, exist_ok=True)
        begin = time.monotonic()
        section = attempt(part, context)
        sections.append(section)
        took = round(time.monotonic() - begin, 1)
        content["parts"].append(section.content() | {"took_s": took})
        write(out, content, sections)
    typer.echo(table(sections))
    typer.echo(f"written: {out}, {out.with_suffix('.md')}, {out.with_suffix('.html')}")
    if any(section.name == FAILED for section in sections):
        raise typer.Exit(1)


def attempt(part: Part, context: Context) -> Section:
    """One part; that it could not be run is a finding too, and keeps no other from running.

    Raises:
        typer.Exit: we were told to stop; what the part had started has been ended.
    """
    try:
        return uvloop.run(_bounded(part(context)))
    except asyncio.CancelledError:
        raise typer.Exit(_INTERRUPTED) from None
    except Exception as error:  # noqa: BLE001 - shown with all that led to it
        trouble = "".join(traceback.format_exception(error))
        say(trouble)
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        return Section(FAILED, {"traceback": trouble}, (Row("the part", "not run", note=reason),))


async def _bounded(section: Awaitable[Section]) -> Section:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        # The default would leave servers behind, some of them stopped.
        loop.add_signal_handler(number, task.cancel if task else loop.stop)
    async with asyncio.timeout(MOST_S):
        return await section


def write(out: Path, content: dict[str, Any], sections: Sequence[Section]) -> None:
    """The three files."""
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")
    out.with_suffix(".md").write_text(table(sections) + "\n", encoding="utf-8")
    html.write(out)


def allow_descriptors() -> None:
    """As many connections as the system lets this process have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def say(text: str) -> None:
    """To whoever waits."""
    typer.echo(text, err=True)
