"""Load generators for throughput: ``wrk`` if it is installed, else processes of our own."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import orjson

from loadtests.bench.child import CpuShare
from loadtests.bench.peer import PeerFailed
from loadtests.client import loopback

ENOUGH_CPU = 0.9
"""Cores that a server of one process must have kept busy for its throughput to be its limit."""
_SLACK_S = 60.0

LUA = """\
-- Sends the bodies of a file in turn, one line each; reports as JSON.
local bodies = {}
for line in io.lines(os.getenv("BENCH_BODIES")) do bodies[#bodies + 1] = line end
local at = 0
wrk.method = "POST"
wrk.headers["content-type"] = "application/json"
function request()
  at = at % #bodies + 1
  return wrk.format(nil, nil, nil, bodies[at])
end
function done(summary, latency)
  local e = summary.errors
  io.write(string.format(
    '{"requests":%d,"seconds":%.6f,"failures":%d,"latency_ms":{"p50":%.3f,"p99":%.3f}}',
    summary.requests - e.status, summary.duration / 1e6,
    e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3))
  io.write("\\n")
end
"""


@dataclass(frozen=True, slots=True)
class Driven:
    """What a load generator did to one server.

    Attributes:
        per_s: requests answered with a 200 each second.
        failures: other answers, and requests without one.
        latency_ms: percentiles, under this load.
        cpu_share: cores that the server's process kept busy.
    """

    per_s: float
    failures: int
    latency_ms: dict[str, float]
    cpu_share: float

    @property
    def trouble(self) -> str:
        """Why the throughput is not the server's limit; empty if it is."""
        if self.failures:
            return f"{self.failures} requests failed"
        if self.cpu_share < ENOUGH_CPU:
            return f"the server used only {self.cpu_share:.2f} of a core"
        return ""

    def content(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "per_s": round(self.per_s, 1),
            "failures": self.failures,
            "latency_ms": self.latency_ms,
            "server_cpu_share": round(self.cpu_share, 3),
            "invalid": self.trouble or None,
        }


class Driver:
    """Drives servers with all that the generator's cores have.

    Args:
        folder: for the Lua script.
        connections: kept busy.
        cores: that the generator stays on; ``None``: wherever the system puts it.
        wrk: path of ``wrk``, or "" to do without; default: the one on the PATH.
    """

    def __init__(
        self, folder: Path, connections: int, cores: Sequence[int] | None, wrk: str | None = None
    ) -> None:
        self._script = folder / "bodies.lua"
        self._script.write_text(LUA, encoding="utf-8")
        self._connections = connections
        self._cores = cores
        self._wrk = shutil.which("wrk") if wrk is None else wrk

    @property
    def name(self) -> str:
        """For the report."""
        processes = len(self._shares())
        return "wrk" if self._wrk else f"{processes} processes of loadtests.bench.pump"

    async def drive(self, pid: int, url: str, bodies: Path, seconds: float) -> Driven:
        """Load one server.

        Args:
            pid: its process, whose CPU time is counted.
            url: with its path.
            bodies: a file with one JSON body a line.
            seconds: how long.

        Raises:
            PeerFailed: the generator did not do its work.
        """
        loopback(url)
        share = CpuShare(pid)
        if self._wrk:
            told = [await self._run(self._wrk_command(url, seconds), bodies, seconds)]
        else:
            commands = [self._pump_command(url, bodies, n, seconds) for n in self._shares()]
            told = await asyncio.gather(*(self._run(c, bodies, seconds) for c in commands))
        # Not of the time in which the generator itself was started.
        cpu = share.read(max(one["seconds"] for one in told))
        worst = max(told, key=lambda one: one["latency_ms"]["p99"])
        return Driven(
            per_s=sum(one["requests"] / one["seconds"] for one in told),
            failures=sum(one["failures"] for one in told),
            latency_ms=worst["latency_ms"],
            cpu_share=cpu,
        )

    async def steady(
        self, url: str, bodies: Path, rate: float, warm_s: float, seconds: float, seed: int
    ) -> dict[str, Any]:
        """Send requests at a rate, in an open loop; what :mod:`loadtests.bench.steady` tells.

        Args:
            url: with its path.
            bodies: a file with one JSON body a line.
            rate: requests a second.
            warm_s: before it counts.
            seconds: how long.
            seed: of the arrivals.

        Raises:
            PeerFailed: the generator did not do its work.
        """
        loopback(url)
        figures = [str(rate), str(warm_s), str(seconds), str(seed)]
        command = [sys.executable, "-m", "loadtests.bench.steady", url, str(bodies), *figures]
        return await self._run(command, bodies, warm_s + seconds)

    def _shares(self) -> list[int]:
        """Connections of each process of our own: two on each core, since one waits a lot."""
        count = min(self._connections, 2 * len(self._cores or [0]))
        return [len(range(i, self._connections, count)) for i in range(count)]

    def _wrk_command(self, url: str, seconds: float) -> list[str]:
        return [
            self._wrk or "wrk",
            "-t1",
            f"-c{self._connections}",
            # Whole seconds are all that it takes.
            f"-d{max(1, round(seconds))}s",
            "-s",
            str(self._script),
            url,
        ]

    def _pump_command(self, url: str, bodies: Path, connections: int, seconds: float) -> list[str]:
        arguments = [url, str(bodies), str(connections), str(seconds)]
        return [sys.executable, "-m", "loadtests.bench.pump", *arguments]

    async def _run(self, command: list[str], bodies: Path, seconds: float) -> dict[str, Any]:
        process = await asyncio.create_subprocess_exec(
            *command,
            env={**os.environ, "BENCH_BODIES": str(bodies)},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            preexec_fn=partial(os.sched_setaffinity, 0, self._cores) if self._cores else None,
        )
        try:
            async with asyncio.timeout(seconds + _SLACK_S):
                said, _ = await process.communicate()
        except TimeoutError:
            raise PeerFailed(f"{command[0]} did not end") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        return read(said)


def read(said: bytes) -> dict[str, Any]:
    """What a generator reports: the last line of what it prints.

    Raises:
        PeerFailed: that is no report, or nothing was answered.
    """
    lines = [line for line in said.splitlines() if line.startswith(b"{")]
    try:
        told: dict[str, Any] = orjson.loads(lines[-1])
    except (IndexError, ValueError):
        raise PeerFailed(f"the generator says: {said[-300:].decode(errors='replace')}") from None
    if not told["requests"] or told["latency_ms"] is None:
        raise PeerFailed(f"nothing was answered, {told['failures']} failed")
    return told
