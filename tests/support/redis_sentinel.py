"""A real master with a replica, watched by a real sentinel."""

from __future__ import annotations

import time
from pathlib import Path

from tests.support.redis_server import RedisServer, free_port
from tests.support.waiting import until

SERVICE = "main"


class RedisSentinel:
    """One master, one replica, one sentinel that is enough to decide.

    Args:
        folder: working directories are made in it.
    """

    def __init__(self, folder: Path) -> None:
        homes = [folder / name for name in ("master", "replica", "sentinel")]
        for home in homes:
            home.mkdir()
        self.master = RedisServer(homes[0])
        self.replica = RedisServer(homes[1], "--replicaof", "127.0.0.1", str(self.master.port))
        config = homes[2] / "sentinel.conf"
        config.write_text(
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.master.port} 1\n"
            f"sentinel down-after-milliseconds {SERVICE} 1000\n"
            f"sentinel failover-timeout {SERVICE} 5000\n"
        )
        self.sentinel = RedisServer(homes[2], str(config), "--sentinel", port=free_port())

    @property
    def url(self) -> str:
        # The first one is not there: one that is must be enough.
        return f"redis+sentinel://127.0.0.1:{free_port()},127.0.0.1:{self.sentinel.port}/{SERVICE}"

    def start(self) -> None:
        """Start all three; returns when the sentinel knows that the replica follows."""
        for server in (self.master, self.replica, self.sentinel):
            server.start()
        with self.sentinel.client() as client:
            for _ in range(3000):
                replicas = client.sentinel_slaves(SERVICE)
                if [one["master-link-status"] for one in replicas] == ["ok"]:
                    return
                time.sleep(0.02)
        raise RuntimeError("the sentinel does not know the replica")

    @property
    def masters(self) -> list[RedisServer]:
        return [self.master]

    def keys(self) -> list[int]:
        """How many keys the master has."""
        return self.master.keys()

    async def demote(self) -> None:
        """Make the replica the master, and the master its replica; both go on running."""
        with self.sentinel.client() as client:
            client.sentinel_failover(SERVICE)
            port = self.replica.port
            await until(lambda: client.sentinel_get_master_addr_by_name(SERVICE)[1] == port)
        with self.master.client() as client:
            client.replicaof("127.0.0.1", port)  # the sentinel would do so some ten seconds later
            await until(lambda: client.role()[0] == b"slave")

    def settle(self) -> None:
        """Return when the replica has what the master has."""
        with self.master.client() as client:
            assert client.wait(1, 60_000) == 1

    def stop(self) -> None:
        """Kill all three."""
        for server in (self.sentinel, self.replica, self.master):
            server.stop()
