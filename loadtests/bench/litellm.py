"""LiteLLM's proxy with its Redis cache, in a virtual environment of its own.

It is what many put in front of a model for caching alone. Its dependencies are its own affair, so
it is installed apart, when the benchmark is run, in the newest release that there is.
"""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import orjson
import yaml

from loadtests.bench.child import Child
from loadtests.bench.peer import PeerFailed

MODEL = "bench"
PATH = "/v1/chat/completions"
_INSTALL_S = 1800.0
_START_S = 300.0
ENVIRONMENT = {
    "LITELLM_TELEMETRY": "False",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_LOG": "ERROR",
    "LITELLM_MODE": "PRODUCTION",
    "DISABLE_ADMIN_UI": "True",
    "NO_DOCS": "True",
    "NO_REDOC": "True",
    # Requery is asked without keys too; both listen on the loopback alone.
    "LITELLM_MASTER_KEY": None,
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    "REDIS_URL": None,
    "DATABASE_URL": None,
}
"""No debug output, no pages, nothing fetched, no keys to check."""


class LitellmProxy:
    """One worker of the proxy.

    Args:
        home: folder for its virtual environment, which is kept.
        folder: for configuration and log.
        port: of the proxy.
        provider: address of the model provider, without a path at the end.
        redis_port: of Redis.
    """

    def __init__(
        self, home: Path, folder: Path, *, port: int, provider: str, redis_port: int
    ) -> None:
        self._home = home / "litellm"
        self._config = folder / "litellm.yaml"
        self._install_log = folder / "litellm_install.log"
        self.settings = config(provider, redis_port)
        self.url = f"http://127.0.0.1:{port}"
        self._child = Child(
            [
                str(self._home / "bin" / "litellm"), "--config", str(self._config),
                "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1",
            ],
            folder / "litellm.log",
            ENVIRONMENT,
        )  # fmt: skip
        self.release = ""
        """Its version, once it has been installed."""

    @property
    def pid(self) -> int:
        """Of the worker."""
        return self._child.pid

    async def start(self) -> None:
        """Install it if need be, and start it.

        Raises:
            PeerFailed: it cannot be installed, or does not start.
        """
        await self._install()
        self._config.write_text(yaml.safe_dump(self.settings), encoding="utf-8")
        self._child.start()
        await self._child.until_answers(self.url, "/health/liveliness", _START_S)

    async def close(self) -> None:
        """End it."""
        await self._child.close()

    async def _install(self) -> None:
        python = self._home / "bin" / "python"
        if not (self._home / "installed").exists():
            await self._run(sys.executable, "-m", "venv", str(self._home))
            await self._run(str(python), "-m", "pip", "install", "--quiet", "litellm[proxy]")
            (self._home / "installed").touch()
        code = "from importlib.metadata import version; print(version('litellm'))"
        self.release = (await self._run(str(python), "-c", code)).strip()

    async def _run(self, *command: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *command,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            async with asyncio.timeout(_INSTALL_S):
                said, _ = await process.communicate()
        except TimeoutError:
            raise PeerFailed("LiteLLM took too long to install") from None
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        text = said.decode(errors="replace")
        if process.returncode:
            raise PeerFailed(f"LiteLLM cannot be installed: {text.strip()[-300:]}")
        return text


def config(provider: str, redis_port: int) -> dict[str, Any]:
    """The proxy's configuration file."""
    return {
        "model_list": [
            {
                "model_name": MODEL,
                "litellm_params": {
                    "model": f"openai/{MODEL}",
                    "api_base": provider,
                    "api_key": "none",
                },
            }
        ],
        "litellm_settings": {
            "cache": True,
            "cache_params": {
                "type": "redis",
                "host": "127.0.0.1",
                "port": redis_port,
                "ttl": 86_400,
            },
            "set_verbose": False,
            "telemetry": False,
        },
    }


def body(query: str) -> bytes:
    """A request for the rewrites of a query, as a chat."""
    message = {"role": "user", "content": query}
    return orjson.dumps({"model": MODEL, "messages": [message], "temperature": 0})
