"""A real Prometheus of a test's own, and its promtool."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.deploy.observability import FOLDER, RULES
from tests.support.redis_server import free_port
from tests.support.waiting import is_up, wait_until

NAMES = ("prometheus", "promtool")
_PATIENCE_S = 90
"""Bounds what should have happened; nothing is asserted about how long it took."""


@dataclass(frozen=True)
class Prometheus:
    """One that runs.

    Attributes:
        url: its address.
        client: asks it.
    """

    url: str
    client: httpx.Client

    def query(self, text: str) -> list[dict[str, Any]]:
        """The samples of an instant query.

        Raises:
            AssertionError: it is refused.
        """
        response = self.client.post(f"{self.url}/api/v1/query", data={"query": text})
        body = response.json()
        assert body["status"] == "success", f"{text}: {body}"
        data = body["data"]
        if data["resultType"] == "scalar":
            return [{"metric": {}, "value": data["result"]}]
        samples: list[dict[str, Any]] = data["result"]
        return samples

    def until(self, text: str, meanwhile: Callable[[], None] = lambda: None) -> list[Any]:
        """The samples of a query once it has any; ``meanwhile`` is called again and again."""
        end = time.monotonic() + _PATIENCE_S
        while time.monotonic() < end:
            meanwhile()
            if samples := self.query(text):
                return samples
            time.sleep(0.2)
        raise AssertionError(f"no samples in {_PATIENCE_S} s: {text}; targets {self.targets()}")

    def targets(self) -> Any:
        """What it scrapes, with the last fault of each."""
        return self.client.get(f"{self.url}/api/v1/targets").json()["data"]["activeTargets"]


def configuration(folder: Path, *, targets: list[str], key: str) -> Path:
    """The configuration of the repository, for these targets and this key, scraping each second."""
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [str(_hurried(rules, folder)) for rules in RULES]
    (job,) = config["scrape_configs"]
    secret = folder / "metrics.key"
    secret.write_text(key)
    job["authorization"]["credentials_file"] = str(secret)
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": targets}]
    written = folder / "prometheus.yml"
    written.write_text(yaml.safe_dump(config))
    return written


def _hurried(rules: Path, folder: Path) -> Path:
    """A copy of rules that are evaluated as often as the configuration says."""
    content = yaml.safe_load(rules.read_text())
    for group in content["groups"]:
        group.pop("interval", None)
    written = folder / rules.name
    written.write_text(yaml.safe_dump(content))
    return written


@contextmanager
def running(binary: Path, config: Path) -> Iterator[Prometheus]:
    """A server on a free port of the loopback, which is killed at the end."""
    port = free_port()
    with (config.parent / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            [
                str(binary), f"--config.file={config}",
                f"--storage.tsdb.path={config.parent / 'data'}",
                f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        with httpx.Client(timeout=30, trust_env=False) as client:
            server = Prometheus(f"http://127.0.0.1:{port}", client)
            wait_until(
                lambda: is_up(client, f"{server.url}/-/ready"),
                alive=lambda: process.poll() is None,
            )
            yield server
    finally:
        process.kill()
        process.wait()
