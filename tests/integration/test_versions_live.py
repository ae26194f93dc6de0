"""Real versions side by side: loaded while another serves, drained, and gone without a trace."""

from __future__ import annotations

import asyncio
import multiprocessing
import shutil
import warnings
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio
from prometheus_client import CollectorRegistry

from model_store.manifest import DecodingSpec, Manifest, WeightsSpec
from model_store.store import FolderSource, Store, pack_version
from service.config.settings import Settings
from service.control.metrics import ControlMetrics
from service.control.store import LocalDocumentStore
from service.errors import InsufficientMemory, VersionInUse, VersionNotLoaded
from service.versions.desired import DesiredVersions
from service.versions.from_store import (
    engine_factory,
    known_versions,
    memory_budget,
    version_finder,
)
from service.versions.loader import Loader
from service.versions.memory_budget import MemoryBudget
from service.versions.metrics import LoaderMetrics, ReconcilerMetrics
from service.versions.reconciler import Reconciler
from service.versions.registry import VersionRegistry
from service.versions.state import State
from service.versions.version import ModelVersion
from tests.integration.conftest import START_SECONDS
from tests.support.waiting import until

pytestmark = [
    pytest.mark.integration,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(3 * START_SECONDS),
]

KV_BYTES = 128 * 2**20
TEMPERATURES = {"one-1": (0.0, 0.7), "two-1": (0.0, 0.7, 0.7), "three-1": (0.0,)}
"""Each version answers with as many candidates, which tells them apart."""


class Replica:
    """The parts of one process that have to do with versions, on real engines."""

    def __init__(self, root: Path, folder: Path) -> None:
        self._others = engine_cores()
        settings = Settings(
            default_version="one-1",
            cache_dir=folder / "cache",
            engine_kv_cache_bytes=KV_BYTES,
        )
        store = Store([FolderSource(root)], settings.cache_dir)
        estimate = memory_budget(settings).estimate
        manifests = [store.get(name).manifest for name in TEMPERATURES]
        # Room for two engines and a half.
        self.memory = MemoryBudget(int(2.5 * max(map(estimate, manifests))), estimate)
        self.versions = VersionRegistry(known_versions(store, settings), default="one-1")
        registry = CollectorRegistry()
        self.loader = Loader(
            versions=self.versions,
            engines=engine_factory(store, settings),
            on_tokens=lambda _name: lambda _prompt, _generated: None,
            memory=self.memory,
            metrics=LoaderMetrics(registry),
            warm_queries=settings.warm_up(),
            load_timeout_s=START_SECONDS,
        )
        self.document_store = LocalDocumentStore()
        self.reconciler = Reconciler(
            desired=DesiredVersions(
                self.document_store, initial=["one-1"], metrics=ControlMetrics(registry)
            ),
            versions=self.versions,
            loader=self.loader,
            metrics=ReconcilerMetrics(registry),
            find=version_finder(store, settings),
        )

    def cores(self) -> set[int]:
        """Process ids of its engine cores."""
        return engine_cores() - self._others

    async def ask(self, name: str) -> int:
        """How many candidates a request that is pinned to a version gets."""
        version = self.versions.serving(name)
        with version.serving():
            return len([c async for c in version.engine.generate("steele stake")])


@pytest.fixture(scope="module")
def root(materialised: tuple[Manifest, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with three versions of the packaged one's weights, complete, so none is merged."""
    manifest, weights = materialised
    root = tmp_path_factory.mktemp("models")
    for name, temperatures in TEMPERATURES.items():
        folder = root / name
        folder.mkdir()
        for file in ("config.json", "tokenizer.json", "model.safetensors"):
            shutil.copyfile(weights / file, folder / file)
        (folder / "README.md").write_text("A version for tests.\n")
        pack_version(
            folder,
            name=name,
            base=manifest.base,
            weights=WeightsSpec(kind="full"),
            prompt=manifest.prompt,
            decoding=DecodingSpec(temperatures=temperatures),
        )
    return root


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def replica(root: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Replica]:
    one = Replica(root, tmp_path_factory.mktemp("replica"))
    following = asyncio.create_task(one.reconciler.run())
    first = one.versions.get("one-1")
    with warnings.catch_warnings():
        # Importing vLLM and torch sets off deprecations among themselves.
        warnings.simplefilter("ignore")
        await until(lambda: first.up or first.state is State.FAILED)
    yield one
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    await one.loader.close()


def engine_cores() -> set[int]:
    """Process ids of the engine cores of this process, other tests' included."""
    return {c.pid for c in multiprocessing.active_children() if c.pid and "Engine" in c.name}


async def test_two_versions_side_by_side_within_the_budget(replica: Replica) -> None:
    one, two, three = (replica.versions.get(name) for name in TEMPERATURES)
    assert one.up, one.reason
    (first,) = replica.cores()

    # The second is loaded while the first serves.
    await replica.reconciler.load("two-1", author="ada")
    with pytest.raises(VersionNotLoaded, match=r"loading|warming"):
        replica.versions.serving("two-1")
    served = await serve_until_loaded(replica, two)
    assert two.up, two.reason
    assert served
    assert set(served) == {len(TEMPERATURES["one-1"])}

    # Both answer, at the same time, each as itself.
    both = await asyncio.gather(replica.ask("one-1"), replica.ask("two-1"))
    assert list(both) == [2, 3]
    (second,) = replica.cores() - {first}
    for pid, version in ((first, one), (second, two)):
        assert psutil.Process(pid).memory_info().rss <= replica.memory.estimate(version.manifest)

    # A third does not fit, and is not started.
    with pytest.raises(InsufficientMemory, match="one-1, two-1"):
        await replica.reconciler.load("three-1", author="ada")
    assert three.state is State.AVAILABLE
    assert replica.cores() == {first, second}

    # The default changes, and the first goes once its last request has ended.
    with pytest.raises(VersionInUse):
        await replica.reconciler.unload("one-1", author="ada")
    replica.versions.set_default("two-1")
    with one.serving():
        await replica.reconciler.unload("one-1", author="ada")
        with pytest.raises(VersionNotLoaded):
            replica.versions.serving("one-1")
        assert [c async for c in one.engine.generate("steele stake")]
    await replica.loader.finished("one-1")
    assert one.state is State.AVAILABLE
    # The process goes by itself once it has been told to.
    await until(lambda: replica.cores() == {second})
    assert replica.versions.route(None) is two
    assert await replica.ask("two-1") == 3

    # Its room can be used.
    await replica.reconciler.load("three-1", author="ada")
    await replica.loader.finished("three-1")
    assert await replica.ask("three-1") == 1


async def serve_until_loaded(replica: Replica, loading: ModelVersion) -> list[int]:
    """Candidates of each request to the first version while another is being loaded."""
    served = []
    while loading.loading:
        served.append(await replica.ask("one-1"))
        await asyncio.sleep(0.1)
    return served


async def test_a_load_that_is_given_up_leaves_no_process(replica: Replica) -> None:
    """On the replica that the scenario above has left: it serves two-1 and three-1."""
    one = replica.versions.get("one-1")
    await replica.reconciler.unload("three-1", author="ada")
    await replica.loader.finished("three-1")
    await until(lambda: len(replica.cores()) == 1)
    before = replica.cores()
    await replica.reconciler.load("one-1", author="ada")
    await until(lambda: replica.cores() != before or not one.loading)
    assert one.loading, one.reason
    await replica.reconciler.unload("one-1", author="ada")
    await replica.loader.finished("one-1")
    assert one.state is State.AVAILABLE
    await until(lambda: replica.cores() == before)
    assert await replica.ask("two-1") == 3
