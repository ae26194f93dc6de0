"""Where the service's own process spends its time: py-spy while it is under load.

The engine core is another process, and most of a miss happens there, in code that is not Python.
What is recorded here is the part that this project is made of.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any, Literal

import orjson
import typer
import uvloop

from loadtests.bench.peer import PeerFailed
from loadtests.bench.plans import WORK
from loadtests.bench.section import Say
from loadtests.client import HttpTransport
from loadtests.exchange import NoReply
from loadtests.queries import Queries, known_queries
from loadtests.scenarios.traffic import rewrite, warm
from loadtests.target import Target

_CALLERS = 16
_KNOWN = 50
_HERTZ = 250
_SLACK_S = 60.0
_SHOWN = 25
_DEADLINE_S = 60.0
_OURS = ("service", "model_store")

What = Literal["hits", "misses"]


def main(what: What, seconds: float, out: Path, *, seed: int, version: str) -> None:
    """Record, write the file and print the shares.

    Raises:
        PeerFailed: py-spy is not there, or may not look into another process.
    """
    known, _ = known_queries(seed=seed)
    queries = Queries(known[:_KNOWN], seed=seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    uvloop.run(record(what, seconds, out, queries, version, lambda t: typer.echo(t, err=True)))
    recorded = orjson.loads(out.read_bytes())
    for title, counted in (("package", by_package(recorded)), ("module", by_module(recorded))):
        typer.echo(f"\n| {title} | share of the time on a CPU |\n|---|---|")
        for name, share in counted.most_common(_SHOWN):
            typer.echo(f"| {name} | {100 * share:.1f} % |")
    typer.echo(f"\nwritten: {out} (open it in speedscope)")


async def record(
    what: What, seconds: float, out: Path, queries: Queries, version: str, say: Say
) -> None:
    """Start the service, put it under load, and record it."""
    settings = {"REQUERY_DEFAULT_VERSION": version, "REQUERY_ADMISSION_TARGET_MS": "600000"}
    async with (
        Target(WORK / "logs" / "profile", settings) as target,
        HttpTransport(target.url) as transport,
    ):
        if what == "hits":
            await warm(target, queries.known)
        draw = queries.popular if what == "hits" else queries.unseen

        async def caller() -> None:
            while True:
                await transport.send(rewrite(draw(), what, deadline_s=_DEADLINE_S, named=True))

        say(f"recording {what} for {seconds:.0f} s")
        callers = [asyncio.create_task(caller()) for _ in range(_CALLERS)]
        try:
            await _spy(target.process.pid, seconds, out)
        finally:
            for task in callers:
                task.cancel()
            results = await asyncio.gather(*callers, return_exceptions=True)
        if broken := [r for r in results if isinstance(r, NoReply)]:
            raise PeerFailed(f"the service stopped answering: {broken[0]}")


async def _spy(pid: int, seconds: float, out: Path) -> None:
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    if program is None:
        raise PeerFailed("py-spy is not installed; install it (it is in the extra 'dev')")
    process = await asyncio.create_subprocess_exec(
        program,
        "record",
        *("--pid", str(pid), "--duration", str(round(seconds)), "--rate", str(_HERTZ)),
        *("--format", "speedscope", "--output", str(out)),
        # Stopping the service for each sample would change what is measured.
        "--nonblocking",
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(seconds + _SLACK_S):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise PeerFailed(
            f"py-spy failed (it must be allowed to trace processes): {said.decode()[-300:]}"
        )


def by_module(recorded: Mapping[str, Any]) -> Counter[str]:
    """Share of the samples whose innermost frame is in each file of Python.

    Args:
        recorded: a speedscope file of sampled profiles.
    """
    return _shares(recorded, module)


def by_package(recorded: Mapping[str, Any]) -> Counter[str]:
    """The same by package, where ours are apart from what they call."""
    return _shares(recorded, lambda file: module(file).partition(".")[0])


def _shares(recorded: Mapping[str, Any], name: Any) -> Counter[str]:
    frames = recorded["shared"]["frames"]
    counted: Counter[str] = Counter()
    for profile in recorded["profiles"]:
        for stack, weight in zip(profile["samples"], profile["weights"], strict=True):
            if stack:
                counted[name(frames[stack[-1]].get("file") or "")] += weight
    total = sum(counted.values())
    return Counter({key: weight / total for key, weight in counted.items()}) if total else counted


def module(file: str) -> str:
    """The dotted name of a file of Python, as far as its path tells."""
    if not file:
        return "native code"
    parts = PurePath(file).with_suffix("").parts
    for marker in ("site-packages", "dist-packages"):
        if marker in parts:
            return ".".join(parts[parts.index(marker) + 1 :])
    for ours in _OURS:
        if ours in parts:
            return ".".join(parts[parts.index(ours) :])
    if any(part.startswith("python3") for part in parts):
        return f"stdlib.{parts[-1]}" if parts[-2].startswith("python3") else ".".join(parts[-2:])
    return parts[-1]
