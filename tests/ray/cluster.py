"""A Ray cluster of two nodes on this machine, on loopback alone, in processes of its own.

``python -m tests.ray.cluster`` hosts it, reads commands (one JSON list a line) and answers each
with a line; :class:`RayCluster` is the other end of the pipe. Every process of the cluster carries
a mark in its environment, so that none outlives the test, however it ends.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

ROOT = Path(__file__).parents[2]
PATIENCE_S = 600.0
"""Bounds a wait for what should have happened; nothing is asserted about how long it took."""
_MARK = "REQUERY_TEST_CLUSTER"
_NODE = "REQUERY_TEST_NODE"
_STORE_BYTES = 100 * 2**20


class RayCluster:
    """Starts on entering a ``with`` block; all of its processes are killed at the end.

    Args:
        variables: environment of all processes.
        cpus: logical CPUs of each node.
        nodes: how many there are.
    """

    def __init__(self, *, cpus: int = 8, nodes: int = 2, **variables: str) -> None:
        # Paths of sockets have a bound that pytest's folders are too long for.
        self.folder = Path(tempfile.mkdtemp(prefix="rq-"))
        self.notes = self.folder / "notes"
        self.generated = self.folder / "generated"
        self.address = ""
        self.port = _free_port()
        self._mark = self.folder.name
        self._cpus = cpus
        self._nodes = nodes
        self._variables = variables

    def __enter__(self) -> Self:
        self.notes.mkdir()
        (self.folder / "ray").mkdir()
        self._environment = {
            **os.environ,
            _MARK: self._mark,
            "RAY_TEST_NOTES": str(self.notes),
            "GENERATED": str(self.generated),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "service.ray.edge:middlewares",
            # Without it a driver looks for the cluster at this machine's own address: the name is
            # of what it was made for, and it stands for loopback everywhere.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            # Both nodes get requests, though all come in by the proxy of the first.
            "RAY_SERVE_PROXY_PREFER_LOCAL_NODE_ROUTING": "0",
            # Patience with a busy machine, and less of it with a dead node than the default.
            "RAY_raylet_start_wait_time_s": "40",
            "RAY_worker_register_timeout_seconds": str(int(PATIENCE_S)),
            "RAY_health_check_period_ms": "1000",
            "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "120",
            # Where a driver looks for a cluster, among other things.
            "RAY_TMPDIR": str(self.folder),
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            # Else workers are the last in the queue for the cores of a busy machine.
            "RAY_worker_niceness": "0",
            **self._variables,
        }
        with (self.folder / "stderr").open("w") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.ray.cluster", str(self.folder / "ray"),
                 str(self._cpus), str(self._nodes)],
                cwd=ROOT, env=self._environment, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
            )  # fmt: skip
        try:
            self.address = self._answer()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    @classmethod
    def start(cls, *, tries: int = 5, **options: Any) -> Self:
        """A cluster that has been entered: a node whose agents are slow to start gives up."""
        while True:
            try:
                return cls(**options).__enter__()
            except AssertionError:
                tries -= 1
                if not tries:
                    raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        _kill(self.processes)
        shutil.rmtree(self.folder, ignore_errors=True)

    def driver(self) -> dict[str, str]:
        """Environment of a program that uses the cluster."""
        names = ("RAY_TMPDIR", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_USAGE_STATS_ENABLED")
        of_all = {name: self._environment[name] for name in (*names, _MARK, "PYTHONPATH")}
        return of_all | {"RAY_ADDRESS": self.address}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def deploy(self, config: dict[str, Any]) -> None:
        """Deploy a Serve config; its proxy listens at :attr:`url`. Returns before it runs."""
        config["proxy_location"] = "HeadOnly"
        config["http_options"] |= {"host": "127.0.0.1", "port": self.port}
        path = self.folder / "serve.yaml"
        path.write_text(yaml.safe_dump(config))
        self.ask("deploy", str(path))

    def replicas(self, deployment: str) -> int:
        """How many replicas of a deployment run."""
        return int(self.ask("replicas", deployment))

    def until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait until something holds."""
        end = time.monotonic() + PATIENCE_S
        while not holds():
            assert time.monotonic() < end, f"{what}: {self.told()}"
            time.sleep(0.1)

    def processes(self, name: str = "", *, node: str = "") -> dict[int, str]:
        """Command lines by process id, of those with ``name`` in it.

        Args:
            name: part of the command line.
            node: of a worker's node: ``1`` is the first after the head.
        """
        marks = {f"{_MARK}={self._mark}".encode()}
        if node:
            marks.add(f"{_NODE}={node}".encode())
        parents, commands, found = {}, {}, set()
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                pid = int(folder.name)
                commands[pid] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                parents[pid] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if marks <= {*(folder / "environ").read_bytes().split(b"\0")}:
                    found.add(pid)
        # Some write their title over their environment.
        while children := {p for p, parent in parents.items() if parent in found} - found:
            found |= children
        found.discard(os.getpid())
        return {pid: commands[pid] for pid in found if name in commands.get(pid, "")}

    def replica_pids(self, deployment: str, *, node: str = "") -> list[int]:
        """Processes of a deployment's replicas."""
        return sorted(self.processes(f"ray::ServeReplica:requery:{deployment}", node=node))

    def kill_node(self, node: str = "1") -> None:
        """Kill everything on a node, as if the machine had lost its power."""
        _kill(lambda: self.processes(node=node))

    def noted(self) -> list[tuple[int, str]]:
        """What engines have noted, with their process ids."""
        return [
            (int(file.name), line)
            for file in sorted(self.notes.iterdir())
            for line in file.read_text().splitlines()
        ]

    def ask(self, *command: str) -> Any:
        """The answer of the cluster's process to a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def told(self) -> str:
        """The end of what the cluster's process has written."""
        return (self.folder / "stderr").read_text()[-2000:]

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            # Ray writes to standard output too.
            if line.startswith("answer "):
                return json.loads(line.removeprefix("answer "))
        raise AssertionError(f"the cluster has ended: {self.told()}")


def _kill(which: Callable[[], dict[int, str]]) -> None:
    """Kill processes until there are none: some start others until they die."""
    while found := which():
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _commands() -> Iterator[list[str]]:
    for line in sys.stdin:
        yield json.loads(line)


def _say(answer: Any) -> None:
    sys.stdout.write(f"answer {json.dumps(answer)}\n")
    sys.stdout.flush()


def main() -> None:
    """Host a cluster until nobody talks to it any more."""
    folder, cpus, nodes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    import ray
    from ray import serve
    from ray.cluster_utils import Cluster
    from ray.serve.scripts import run

    def node() -> dict[str, Any]:
        # A raylet that has to be told the ports of its agents ends if they are slow to start.
        agents = ("dashboard_agent_listen_port", "metrics_agent_port", "metrics_export_port",
                  "runtime_env_agent_port")  # fmt: skip
        return {
            "num_cpus": cpus,
            "object_store_memory": _STORE_BYTES,
            "node_ip_address": "127.0.0.1",
            "include_log_monitor": False,
            **{agent: _free_port() for agent in agents},
        }

    # The monitor would start and stop machines.
    head = node() | {"include_dashboard": False, "temp_dir": folder, "no_monitor": True}
    cluster = Cluster(initialize_head=True, connect=False, head_node_args=head)
    for number in range(1, nodes):
        cluster.add_node(**node(), env_vars={_NODE: str(number)})
    ray.init(address=cluster.address, namespace="serve", log_to_driver=False)
    _say(cluster.address)
    for command in _commands():
        match command:
            case ["deploy", path]:
                run.main([path, "--non-blocking"], standalone_mode=False)
                _say(None)
            case ["replicas", name]:
                application = serve.status().applications["requery"]
                found = application.deployments.get(name)
                _say(0 if found is None else found.replica_states.get("RUNNING", 0))
            case ["status"]:
                one = serve.status().applications["requery"]
                messages = {n: f"{d.status} {d.message}" for n, d in one.deployments.items()}
                _say([one.status, one.message, messages])
            case _:
                raise ValueError(f"unknown command {command}")


if __name__ == "__main__":
    main()
