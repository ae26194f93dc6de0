"""A real Redis Cluster of a test's own."""

from __future__ import annotations

import socket
import time
from pathlib import Path

from tests.support.redis_server import PortTaken, RedisServer, free_port

SLOTS = 16384
_BUS = 10_000
"""A node talks to the others on its port plus this."""


class RedisCluster:
    """Masters that share the slots evenly, without replicas.

    Args:
        folder: their working directories are made in it.
        masters: how many.
    """

    def __init__(self, folder: Path, masters: int = 3) -> None:
        self._folder, self._masters = folder, masters
        self.nodes = self._choose()

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)

    def start(self) -> None:
        """Start the nodes and join them; returns when each knows all slots.

        Raises:
            RuntimeError: they do not come together.
        """
        self._start_nodes()
        bounds = [SLOTS * i // self._masters for i in range(self._masters + 1)]
        for number, node in enumerate(self.nodes):
            with node.client() as client:
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                slots = range(bounds[number], bounds[number + 1])
                client.execute_command("CLUSTER", "ADDSLOTS", *slots)
        # Epochs can only be given to nodes that have not met any other.
        for node in self.nodes[1:]:
            with node.client() as client:
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)
        for _ in range(3000):
            if all(self._knows_all(node) for node in self.nodes):
                return
            time.sleep(0.02)
        raise RuntimeError("the Redis Cluster did not come together")

    def stop(self) -> None:
        """Kill all nodes."""
        for node in self.nodes:
            node.stop()

    @property
    def masters(self) -> list[RedisServer]:
        return self.nodes

    def keys(self) -> list[int]:
        """How many keys each node has."""
        return [node.keys()[0] for node in self.nodes]

    def give(self, slot: int, to: RedisServer) -> None:
        """Let ``to`` have an empty slot; clients are not told."""
        with to.client() as client:
            name = client.execute_command("CLUSTER", "MYID")
        for node in [to, *(node for node in self.nodes if node is not to)]:
            with node.client() as client:
                client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", name)

    def _choose(self) -> list[RedisServer]:
        ports: list[int] = []
        while len(ports) < self._masters:
            # A port that was found free and let go can be found again.
            if (port := cluster_port()) not in ports:
                ports.append(port)
        nodes = []
        for port in ports:
            home = self._folder / f"node-{port}"
            home.mkdir()
            nodes.append(
                RedisServer(
                    home, "--cluster-enabled", "yes", "--cluster-node-timeout", "15000",
                    "--cluster-require-full-coverage", "no", port=port,
                )
            )  # fmt: skip
        return nodes

    def _start_nodes(self) -> None:
        """Start all; elsewhere if somebody took a port since it was chosen."""
        for _ in range(3):
            try:
                for node in self.nodes:
                    node.start()
            except PortTaken:
                self.stop()
                self.nodes = self._choose()
            else:
                return
        raise RuntimeError("the Redis Cluster found no ports for itself")

    def _knows_all(self, node: RedisServer) -> bool:
        with node.client() as client:
            info = client.execute_command("CLUSTER", "INFO").split()
        return {b"cluster_state:ok", b"cluster_slots_ok:%d" % SLOTS} <= set(info)


def cluster_port() -> int:
    """A free port whose bus port exists and is free too."""
    while True:
        port = free_port()
        if port + _BUS > 65535:
            continue
        with socket.socket() as bus:
            try:
                bus.bind(("127.0.0.1", port + _BUS))
            except OSError:
                continue
        return port
