"""Throughput of one and of several engine replicas on Ray: ``python -m loadtests.ray_scaling``.

The engines are stand-ins: each does one generation at a time, which takes a given time and no CPU.
So the figure says what proxy, ingress and handle make of more replicas, on a machine that is too
small for as many models. Prints JSON; ray runs on this machine alone and ends with the program.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml

from model_store.manifest import Manifest
from model_store.store import open_store
from service.app.components import RuntimeDependencies
from service.config.settings import Settings
from service.engine.protocol import Candidate, Engine
from service.versions.from_store import known_versions
from service.versions.version import OnTokens

_CONFIG = Path(__file__).parents[1] / "deploy/ray/serve.yaml"
_TAKES = "REQUERY_STAND_IN_MS"
_CLIENTS = 4
"""For each replica: one that is served and others that wait."""
_PATIENCE_S = 600.0


class StandIn:
    """An engine that takes its time (:class:`service.engine.protocol.Engine`).

    Args:
        takes_s: seconds that a generation takes; there is one at a time.
    """

    healthy = True
    effort = 0.0

    def __init__(self, takes_s: float) -> None:
        self._takes_s = takes_s
        self._turn = asyncio.Lock()
        self.outstanding = 0
        self.progress = 0

    async def start(self) -> None:
        """Ready at once."""

    async def generate(self, query: str) -> AsyncIterator[Candidate]:
        """One candidate."""
        self.outstanding += 1
        try:
            async with self._turn:
                await asyncio.sleep(self._takes_s)
            self.progress += 1
            yield Candidate(f"{query} set", (1, 2), 0.99)
        finally:
            self.outstanding -= 1

    async def tag(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """Undecided."""
        return [0.5] * len(pairs)

    async def close(self) -> None:
        """Nothing to stop."""


async def stand_ins(settings: Settings) -> RuntimeDependencies:
    """The packaged versions on stand-ins."""
    takes_s = float(os.environ[_TAKES]) / 1000

    async def make(_manifest: Manifest, _on_tokens: OnTokens) -> Engine:
        return StandIn(takes_s)

    store = open_store(settings.sources(), settings.cache_dir)
    return RuntimeDependencies(versions=known_versions(store, settings), engines=make)


def main() -> None:
    """Measure, and print what came of it."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.ray_scaling", description=__doc__)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--generation-ms", type=float, default=250.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    folder, port = tempfile.mkdtemp(prefix="rq-"), _free_port()
    # The last one stands for loopback everywhere, whatever its name says.
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "RAY_worker_niceness": "0",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
        # Else Ray would write one into the home folder.
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    }
    import ray

    ray.init(
        num_cpus=2 + max(options.replicas),
        object_store_memory=100 * 2**20,
        include_dashboard=False,
        log_to_driver=False,
        namespace="serve",
        _temp_dir=folder,
        _node_ip_address="127.0.0.1",
    )
    try:
        rates = {
            replicas: asyncio.run(_measure(folder, port, replicas, options))
            for replicas in options.replicas
        }
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
    first, last = options.replicas[0], options.replicas[-1]
    result = {
        "generation_ms": options.generation_ms,
        "answers_per_second": {str(n): round(rate, 2) for n, rate in rates.items()},
        "share_of_what_the_engines_can_do": {
            str(n): round(rate * options.generation_ms / 1000 / n, 3) for n, rate in rates.items()
        },
        f"{last}_to_{first}": round(rates[last] / rates[first], 2),
    }
    sys.stdout.write(json.dumps(result, indent=2) + "\n")


async def _measure(folder: str, port: int, replicas: int, options: argparse.Namespace) -> float:
    """Answers a second with so many replicas."""
    from ray import serve
    from ray.serve.scripts import run

    config = _config(replicas, options.generation_ms)
    config["http_options"] |= {"host": "127.0.0.1", "port": port, "request_timeout_s": 120}
    path = Path(folder) / "serve.yaml"
    path.write_text(yaml.safe_dump(config))
    await asyncio.to_thread(run.main, [str(path), "--non-blocking"], standalone_mode=False)
    end = time.monotonic() + _PATIENCE_S

    def running() -> bool:
        application = serve.status().applications.get("requery")
        engine = application.deployments.get("engine-grpo-4") if application else None
        return engine is not None and dict(engine.replica_states) == {"RUNNING": replicas}

    while not await asyncio.to_thread(running):
        if time.monotonic() > end:
            raise TimeoutError("the replicas do not start")
        await asyncio.sleep(0.5)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
        while (await _status(client)) != httpx.codes.OK:
            if time.monotonic() > end:
                raise TimeoutError("the service does not become ready")
            await asyncio.sleep(0.5)
        await _answers(client, replicas, 4 * options.generation_ms / 1000, "warm")
        return await _answers(client, replicas, options.seconds, "cold") / float(options.seconds)


async def _status(client: httpx.AsyncClient) -> int:
    try:
        return (await client.get("/readyz")).status_code
    except httpx.HTTPError:
        return 0


async def _answers(client: httpx.AsyncClient, replicas: int, seconds: float, name: str) -> int:
    """How many new queries are answered in so many seconds, by as many clients as keep all busy."""
    end = time.monotonic() + seconds
    count = 0

    async def shop(number: int) -> None:
        nonlocal count
        asked = 0
        while time.monotonic() < end:
            asked += 1
            word = f"{replicas} {number} {asked}".translate(
                str.maketrans("0123456789", "abcdefghij")
            )
            response = await client.post("/rewrite", json={"query": f"{name} stake {word}"})
            if response.status_code != httpx.codes.OK or response.json()["source"] != "engine":
                raise RuntimeError(f"not answered: {response.text}")
            count += time.monotonic() < end

    await asyncio.gather(*(shop(number) for number in range(_CLIENTS * replicas)))
    return count


def _config(replicas: int, generation_ms: float) -> dict[str, Any]:
    """The packaged config, with stand-ins on logical resources."""
    config: dict[str, Any] = yaml.safe_load(_CONFIG.read_text())
    (application,) = config["applications"]
    application["args"]["supply"] = "loadtests.ray_scaling:stand_ins"
    application["runtime_env"]["env_vars"] |= {
        _TAKES: str(generation_ms),
        "REQUERY_DEVICE": "cpu",
        "REQUERY_HOST": "127.0.0.1",
        "REQUERY_WARM_QUERIES": ";",
        # Nobody gives up.
        "REQUERY_DEFAULT_DEADLINE_MS": "100000",
        "REQUERY_MAX_DEADLINE_MS": "100000",
        "REQUERY_GENERATION_TIMEOUT_S": "100",
        # One ingress lets in what all engines have to do.
        "REQUERY_ADMISSION_MAX_CANDIDATES": "4096",
    }
    for deployment, number in zip(application["deployments"], (1, replicas), strict=True):
        del deployment["autoscaling_config"]
        deployment["num_replicas"] = number
        deployment["ray_actor_options"] = {"num_cpus": 1}
    return config


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    main()
