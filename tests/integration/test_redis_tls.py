"""The shared tier over TLS, with a certificate of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from tests.support.redis_cache import VALUE, entry, open_cache
from tests.support.redis_cluster import SLOTS, cluster_port
from tests.support.redis_server import RedisServer, free_port
from tests.support.redis_tls import Tls, tls

pytestmark = pytest.mark.integration


@pytest.fixture
def secured(tmp_path: Path) -> Tls:
    return tls(tmp_path)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def run(stack: ExitStack, folder: Path, secured: Tls, *options: str) -> RedisServer:
    """A server that is stopped after the test; its plain port is there for the test only."""
    server = RedisServer(folder, *options, binary=secured.binary)
    stack.callback(server.stop)
    server.start()
    return server


async def works(url: str) -> bool:
    """Whether an entry that is written is read."""
    cache = open_cache(url)
    await cache.put("k", entry())
    found = await cache.get("k", budget_s=10)
    await cache.close()
    return found is not None and found.generation == VALUE


async def test_one_server_is_used_and_its_certificate_is_checked(
    tmp_path: Path, secured: Tls, stack: ExitStack
) -> None:
    port = free_port()
    run(stack, tmp_path, secured, *secured.options("--tls-port", str(port)))
    address = f"rediss://127.0.0.1:{port}/0"
    assert await works(f"{address}?ssl_ca_certs={secured.certificate}")
    assert await works(f"{address}?ssl_cert_reqs=none")
    assert not await works(address), "nothing vouches for the certificate"
    named = f"rediss://localhost:{port}/0?ssl_ca_certs={secured.certificate}"
    assert not await works(named), "the certificate is another host's"
    assert await works(f"{named}&ssl_check_hostname=false")


async def test_a_certificate_that_is_refused_is_a_counted_error_and_says_why(
    tmp_path: Path, secured: Tls, stack: ExitStack, capsys: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    run(stack, tmp_path, secured, *secured.options("--tls-port", str(port)))
    registry = CollectorRegistry()
    cache = open_cache(f"rediss://127.0.0.1:{port}", registry)
    assert await cache.get("k", budget_s=10) is None
    await cache.close()
    labels = {"tier": "redis", "op": "get", "result": "error"}
    assert registry.get_sample_value("requery_cache_operations_total", labels) == 1
    assert "certificate verify failed" in capsys.readouterr().out.lower()


async def test_a_cluster_is_used(tmp_path: Path, secured: Tls, stack: ExitStack) -> None:
    port = cluster_port()
    options = secured.options("--tls-port", str(port), "--tls-cluster", "yes")
    node = run(stack, tmp_path, secured, *options, "--cluster-enabled", "yes")
    with node.client() as client:
        client.execute_command("CLUSTER", "ADDSLOTS", *range(SLOTS))
    ca = f"ssl_ca_certs={secured.certificate}"
    url = f"rediss+cluster://127.0.0.1:{port}?{ca}"
    while not await works(url):  # it takes the node a moment to believe that it is complete
        pass


async def test_a_sentinel_and_its_master_are_used(
    tmp_path: Path, secured: Tls, stack: ExitStack
) -> None:
    port, watcher = free_port(), free_port()
    replicates = ("--tls-replication", "yes")
    run(stack, tmp_path, secured, *secured.options("--tls-port", str(port), *replicates))
    config = tmp_path / "sentinel.conf"
    config.write_text(f"sentinel monitor main 127.0.0.1 {port} 1\n")
    options = secured.options("--tls-port", str(watcher), *replicates)
    run(stack, tmp_path, secured, str(config), "--sentinel", *options)
    assert await works(
        f"rediss+sentinel://127.0.0.1:{watcher}/main?ssl_ca_certs={secured.certificate}"
    )
