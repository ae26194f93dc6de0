"""``requery precompute --ray`` in processes of its own: killed, told to stop, without a cluster."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from service.config.settings import Settings
from service.precompute.errors import PrecomputeError
from service.versions.from_store import engine_factory
from tests.integration.test_precompute import BATCH, Log, wait_for_batches
from tests.ray.cluster import RayCluster
from tests.support.redis_server import RedisServer

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

WORKERS = 2
RAY = ("--ray", "--workers", str(WORKERS))


@pytest.fixture
def log(
    tmp_path: Path, server: RedisServer, nodes: RayCluster, monkeypatch: pytest.MonkeyPatch
) -> Log:
    for name, value in nodes.driver().items():
        monkeypatch.setenv(name, value)
    made = Log(tmp_path, server, 120)
    # Where workers of the cluster write to, all of them.
    made._generated = nodes.generated
    made._generated.write_text("")
    return made


def test_a_run_that_is_killed_goes_on_and_ends_as_without_ray(log: Log) -> None:
    process = log.start(*RAY)
    wait_for_batches(log, process, 2)
    process.kill()
    process.communicate()
    code, out, err = log.finish(*RAY)
    assert code == 0, err
    assert log.cached() == 120
    assert set(log.generated()) == set(log.queries)
    # What was under way when it was killed may be begun once more, and nothing else.
    assert len(log.generated()) <= 120 + WORKERS * BATCH
    assert "coverage   100.0% of all searches are in the cache now" in out
    assert "done by an earlier run" in out
    assert not log.journal.exists()


def test_a_run_without_ray_goes_on_with_the_same_journal(log: Log) -> None:
    process = log.start(*RAY)
    wait_for_batches(log, process, 2)
    process.terminate()
    _, err = process.communicate()
    assert "run this again to go on" in err
    assert process.returncode == 128 + 15
    log._environment["GENERATED"] = str(log._generated)
    code, out, err = log.finish()
    assert code == 0, err
    assert log.cached() == 120
    assert "done by an earlier run" in out


async def test_without_a_cluster_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        # Ray's own use of other libraries.
        warnings.simplefilter("ignore")
        from service.precompute import ray_run as precompute

    def refuse() -> None:
        raise ConnectionError("nobody there")

    monkeypatch.setattr(precompute, "_connect", refuse)
    pool = precompute.WorkerPool(
        settings=Settings(), version="v", digest="d", engines=engine_factory, concurrency=1
    )
    with pytest.raises(PrecomputeError, match=r"no Ray cluster answers \(nobody there\)"):
        await pool.connect()
