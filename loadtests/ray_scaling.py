"""Throughput of one and of several engine replicas on Ray: ``python -m loadtests.ray_scaling``.

The engines are stand-ins: each does one generation at a time, which takes a fixed time and no CPU.
So the figure measures how proxy, ingress and handle use more replicas, on a machine that is too
small for as many models. Prints JSON; Ray runs on this machine only and ends with the program.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml

from loadtests.processes import until
from model_store.manifest import Manifest
from model_store.store import open_store
from service.app.components import RuntimeDependencies
from service.config.settings import Settings
from service.engine.protocol import Candidate, Engine
from service.versions.from_store import known_versions
from service.versions.version import OnTokens
from tests.support.redis_server import free_port

_CONFIG = Path(__file__).parents[1] / "deploy/ray/serve.yaml"
_TAKES = "REQUERY_STAND_IN_MS"
_CLIENTS = 4
"""Per replica: one is served, the others wait."""
_PATIENCE_S = 600.0


class StandIn:
    """An engine with a fixed duration (:class:`service.engine.protocol.Engine`).

    Args:
        takes_s: seconds that a generation takes; there is one at a time.
    """

    healthy = True
    effort = 0.0
    matrices = None

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
    """Measure, and print the result."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.ray_scaling", description=__doc__)
    parser.add_argument("--replicas", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--generation-ms", type=float, default=250.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    options = parser.parse_args()
    folder, port = tempfile.mkdtemp(prefix="rq-"), free_port()
    # The last one keeps all of Ray on the loopback.
    os.environ |= {
        "RAY_USAGE_STATS_ENABLED": "0",
        "OMP_NUM_THREADS": "1",
        "RAY_worker_niceness": "0",
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
        # Otherwise Ray writes one into the home folder.
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
    """Answers per second with this number of replicas."""
    from ray import serve
    from ray.serve.scripts import run

    config = _config(replicas, options.generation_ms)
    config["http_options"] |= {"host": "127.0.0.1", "port": port, "request_timeout_s": 120}
    path = Path(folder) / "serve.yaml"
    path.write_text(yaml.safe_dump(config))
    await asyncio.to_thread(run.main, [str(path), "--non-blocking"], standalone_mode=False)

    def states() -> dict[str, int]:
        application = serve.status().applications.get("requery")
        engine = application.deployments.get("engine-general-1") if application else None
        return {} if engine is None else dict(engine.replica_states)

    async def running() -> bool:
        return await asyncio.to_thread(states) == {"RUNNING": replicas}

    async def ready() -> bool:
        try:
            return (await client.get("/readyz")).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
        if not await until(running, _PATIENCE_S) or not await until(ready, _PATIENCE_S):
            raise TimeoutError("the replicas, or the service, do not get ready")
        await _answers(client, replicas, 4 * options.generation_ms / 1000, "warm")
        return await _answers(client, replicas, options.seconds, "cold") / float(options.seconds)


async def _answers(client: httpx.AsyncClient, replicas: int, seconds: float, name: str) -> int:
    """Number of new queries answered in ``seconds``; the clients keep all replicas busy."""
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
        # No request times out.
        "REQUERY_DEFAULT_DEADLINE_MS": "100000",
        "REQUERY_MAX_DEADLINE_MS": "100000",
        "REQUERY_GENERATION_TIMEOUT_S": "100",
        # One ingress admits the work of all engines.
        "REQUERY_ADMISSION_MAX_CANDIDATES": "4096",
    }
    for deployment, number in zip(application["deployments"], (1, replicas), strict=True):
        del deployment["autoscaling_config"]
        deployment["num_replicas"] = number
        deployment["ray_actor_options"] = {"num_cpus": 1}
    return config


if __name__ == "__main__":
    main()
