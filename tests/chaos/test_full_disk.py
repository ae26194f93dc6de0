"""A disk that is full: it is said, nothing half-written is taken for whole, and serving goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import httpx
import pytest

from model_store.errors import CannotWrite
from model_store.materialise import is_materialised, materialise, materialised_dir
from model_store.store import FolderSource, Store, StoredVersion
from service.cache.keys import cache_key
from tests.chaos.small_disk import SmallDisk
from tests.chaos.traffic import numbered
from tests.support.model_versions import write_full_version, write_real_version
from tests.support.redis_server import RedisServer, free_port
from tests.support.scripted_process import PATIENCE_S
from tests.support.waiting import is_up, wait_until

ROOT = Path(__file__).parents[2]
QUERIES = 240
PLAN = {"default": "test-1", "weights": {"test-1": 1.0}, "salt": "s"}


@pytest.fixture
def mount(tmp_path: Path) -> Path:
    """Where a small disk can be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    return folder


def refused(version: StoredVersion, cache: Path) -> None:
    """Materialising must fail for want of room, and leave nothing."""
    with pytest.raises(CannotWrite, match="no space left to write in"):
        materialise(version, cache)
    assert not is_materialised(version, cache)
    target = materialised_dir(version, cache)
    assert {path.name for path in target.parent.iterdir()} <= {f"{target.name}.lock"}


def test_a_version_is_materialised_whole_or_not_at_all(tmp_path: Path, mount: Path) -> None:
    write_full_version(tmp_path / "models" / "full-1")
    with SmallDisk(mount, kib=256) as disk:
        cache = disk.path / "cache"
        version = Store([FolderSource(tmp_path / "models")], cache).get("full-1")
        for room_kib in (0, 4, 8, 16, 24):
            disk.fill(but_kib=room_kib)
            if room_kib:
                refused(version, cache)
            else:
                with pytest.raises(CannotWrite, match="no space left to write in"):
                    materialise(version, cache)
            disk.free()
        materialise(version, cache)
        assert is_materialised(version, cache)


@pytest.mark.integration
@pytest.mark.timeout(600)
def test_a_merge_that_finds_no_room_is_said_and_leaves_nothing(tmp_path: Path, mount: Path) -> None:
    write_real_version(tmp_path / "models" / "real-1")
    with SmallDisk(mount, kib=64 * 1024) as disk:
        cache = disk.path / "cache"
        refused(Store([FolderSource(tmp_path / "models")], cache).get("real-1"), cache)


class Precompute:
    """``requery precompute`` over a query log, with its journal on a disk of the test's."""

    def __init__(self, folder: Path, server: RedisServer, journal: Path) -> None:
        self.journal = journal
        self._server = server
        self._folder = folder
        self.digest = write_full_version(folder / "models" / "full-1").digest
        self.queries = [numbered("stake {}", i) for i in range(QUERIES)]
        rows = [f"{query},{QUERIES - i}" for i, query in enumerate(self.queries)]
        (folder / "queries.csv").write_text("\n".join(["query,count", *rows, ""]))
        (folder / "generated").touch()

    def run(self) -> tuple[int, str, str]:
        """Exit status, report and errors of one run, which notes each query by itself."""
        done = subprocess.run(
            [
                sys.executable, "-m", "tests.support.precompute", "precompute",
                str(self._folder / "queries.csv"), "--batch-size", "1", "--concurrency", "1",
                "--coverage", "1", "--journal", str(self.journal),
            ],
            env={
                **os.environ,
                "REQUERY_MODEL_SOURCES": str(self._folder / "models"),
                "REQUERY_DEFAULT_VERSION": "full-1",
                "REQUERY_REDIS_URL": self._server.url,
                "GENERATED": str(self._folder / "generated"),
            },
            cwd=ROOT, capture_output=True, text=True, check=False, timeout=PATIENCE_S,
        )  # fmt: skip
        return done.returncode, done.stdout, done.stderr

    def generated(self) -> list[str]:
        """Queries whose generation has begun, over all runs."""
        return (self._folder / "generated").read_text().splitlines()

    def cached(self) -> int:
        """Queries that are in Redis."""
        with self._server.client() as client:
            return sum(client.exists(cache_key(self.digest, query)) for query in self.queries)


@pytest.mark.integration
def test_a_journal_that_finds_no_room_ends_the_run_and_what_it_has_counts(
    tmp_path: Path, server: RedisServer, mount: Path
) -> None:
    with SmallDisk(mount, kib=64) as disk:
        precompute = Precompute(tmp_path, server, disk.path / "journal")
        disk.fill(but_kib=4)
        code, _, err = precompute.run()
        assert code == 1
        assert "journal cannot be written (No space left on device)" in err
        first = len(precompute.generated())
        assert 0 < first < QUERIES
        # As long as there is no room it goes no further.
        code, _, err = precompute.run()
        assert code == 1, err
        again = len(precompute.generated()) - first
        disk.free()
        code, out, err = precompute.run()
        assert code == 0, err
        assert "coverage   100.0% of all searches are in the cache now" in out
        generated = precompute.generated()
        assert set(generated) == set(precompute.queries)
        # What is in the cache is not generated again, whether it was noted or not.
        assert len(generated) <= QUERIES + again
        assert precompute.cached() == QUERIES
        assert not precompute.journal.exists()


@pytest.mark.integration
def test_a_journal_that_finds_no_room_is_said_without_a_stack_trace(
    tmp_path: Path, server: RedisServer, mount: Path
) -> None:
    with SmallDisk(mount, kib=64) as disk:
        precompute = Precompute(tmp_path, server, disk.path / "journal")
        disk.fill(but_kib=4)
        _, _, err = precompute.run()
    assert "cannot be written (No space left on device)" in err
    assert "Traceback" not in err


class Service:
    """A real service process on a scripted engine, with its log where the test wants it."""

    def __init__(self, log: IO[bytes] | int, errors: Path) -> None:
        port = free_port()
        self._errors = errors.open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.serve_scripted", "--port", str(port)],
            cwd=ROOT,
            env={**os.environ, "REQUERY_EXPOSURES": "log", "REQUERY_SHUTDOWN_DELAY_S": "0"},
            stdout=log,
            stderr=self._errors,
        )
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S)
        self._asked = 0

    def until_ready(self) -> None:
        wait_until(lambda: is_up(self.http), alive=lambda: self.process.poll() is None)

    def ask(self) -> None:
        """Two of each: a miss and a hit, both with an exposure."""
        query = numbered("stake {}", self._asked)
        self._asked += 1
        for _ in range(2):
            body = {"query": query, "unit_id": "u-1"}
            response = self.http.post("/rewrite", json=body)
            assert response.status_code == 200, response.text
            assert response.json()["status"] == "ok"

    def close(self) -> None:
        self.http.close()
        self.process.kill()
        self.process.wait()
        self._errors.close()


@contextmanager
def serving(log: IO[bytes] | int, errors: Path) -> Iterator[Service]:
    """A ready service, all of whose requests are exposures."""
    service = Service(log, errors)
    try:
        service.until_ready()
        response = service.http.put("/routing", json=PLAN, headers={"if-match": "*"})
        assert response.status_code == 200, response.text
        yield service
    finally:
        service.close()


@pytest.mark.integration
def test_a_service_whose_log_finds_no_room_serves_and_logs_again_once_there_is(
    tmp_path: Path, mount: Path
) -> None:
    with SmallDisk(mount, kib=64) as disk:
        path = disk.path / "log"
        with path.open("ab") as log, serving(log, tmp_path / "errors") as service:
            service.ask()
            wait_until(lambda: b'"exposure"' in path.read_bytes())
            disk.fill()
            for _ in range(30):
                service.ask()
            assert service.http.get("/readyz").status_code == 200
            disk.free()
            written = path.stat().st_size

            def logs_again() -> bool:
                service.ask()
                news = path.read_bytes()[written:]
                return b'"exposure"' in news and b'"request"' in news

            wait_until(logs_again)
            service.process.send_signal(signal.SIGTERM)
            assert service.process.wait(PATIENCE_S) == 0
        # At most the one line that was being written when the disk was full is torn.
        torn = 0
        for line in filter(None, path.read_bytes().splitlines()):
            try:
                json.loads(line)
            except ValueError:
                torn += 1
        assert torn <= 1


@pytest.mark.integration
def test_a_service_whose_log_nobody_reads_any_more_serves(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    try:
        with serving(writer, tmp_path / "errors") as service:
            os.close(writer)
            service.ask()
            os.close(reader)
            for _ in range(10):
                service.ask()
            assert service.http.get("/readyz").status_code == 200
    finally:
        for end in (reader, writer):
            with suppress(OSError):
                os.close(end)
