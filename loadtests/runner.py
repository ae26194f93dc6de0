"""Runs the parts of a benchmark and saves each result as soon as it is known."""

from __future__ import annotations

import asyncio
import resource
import signal
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol, Self, TypeVar

import orjson
import typer
import uvloop

from loadtests.queries import Queries, known_queries
from loadtests.report import Report, Row, machine, table

WORK = Path("build/loadtests")
"""Kept files: bench versions, LiteLLM's environment, logs, results."""
MAX_S = 3 * 3600.0
"""Time limit of one part."""
FAILED = "failed"
_INTERRUPTED = 130

Seed = Annotated[int, typer.Option(help="Seed of arrivals and queries.")]
Quick = Annotated[
    bool,
    typer.Option("--quick", help="A short run that only checks the setup; ignore its figures."),
]
Out = Annotated[Path, typer.Option(help="JSON file for the figures; a table (.md) goes beside it.")]


@dataclass(frozen=True, slots=True)
class Context:
    """Input of a part.

    Attributes:
        queries: known queries and never-seen ones.
        folder: for logs.
        seed: of arrivals and queries.
        say: prints progress.
    """

    queries: Queries
    folder: Path
    seed: int
    say: Callable[[str], None]


class Plan(Protocol):
    """Sizes and durations of a part."""

    def quick(self) -> Self:
        """A short plan that only checks the setup; its figures mean nothing."""


Part = Callable[[Context], Awaitable[Report]]
P = TypeVar("P", bound=Plan)


def planned(run: Callable[[P, Context], Awaitable[Report]], plan: P, *, quick: bool) -> Part:
    """A part with its plan."""
    return partial(run, plan.quick() if quick else plan)


def main(
    parts: Sequence[Part], out: Path, *, seed: int, head: dict[str, Any] | None = None
) -> None:
    """Run parts in order; a part that fails is reported, and the next ones still run.

    Args:
        parts: of the benchmark.
        out: JSON file.
        seed: of arrivals and queries.
        head: more fields of the JSON file.

    Raises:
        typer.Exit: a part failed, or a signal interrupted the run.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # one descriptor per open request
    known, source = known_queries(seed=seed)
    content: dict[str, Any] = {
        "machine": machine(),
        "queries": {"known": len(known), "source": source},
        "seed": seed,
        **(head or {}),
        "parts": [],
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    reports: list[Report] = []
    for number, part in enumerate(parts):
        folder = WORK / "logs" / f"{out.stem}-{number}"
        folder.mkdir(parents=True, exist_ok=True)
        begin = time.monotonic()
        report = _attempt(part, Context(Queries(known, seed=seed), folder, seed, say))
        reports.append(report)
        content["parts"].append(report.content() | {"took_s": round(time.monotonic() - begin, 1)})
        out.write_bytes(orjson.dumps(content, option=orjson.OPT_INDENT_2) + b"\n")
        out.with_suffix(".md").write_text(table(reports) + "\n", encoding="utf-8")
    typer.echo(table(reports))
    typer.echo(f"written: {out}, {out.with_suffix('.md')}")
    if any(report.name == FAILED for report in reports):
        raise typer.Exit(1)


def _attempt(part: Part, context: Context) -> Report:
    try:
        return uvloop.run(_bounded(part(context)))
    except asyncio.CancelledError:
        raise typer.Exit(_INTERRUPTED) from None
    except Exception as error:  # noqa: BLE001 - reported with its traceback
        text = "".join(traceback.format_exception(error))
        say(text)
        while isinstance(error, ExceptionGroup):
            error = error.exceptions[0]
        reason = f"{type(error).__name__}: {error}"
        return Report(FAILED, {"traceback": text}, (Row("the part", "not run", note=reason),))


async def _bounded(report: Awaitable[Report]) -> Report:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        # The default action would leave servers behind, some of them stopped.
        loop.add_signal_handler(number, task.cancel if task else loop.stop)
    async with asyncio.timeout(MAX_S):
        return await report


def say(text: str) -> None:
    """Print progress on standard error."""
    typer.echo(text, err=True)
