"""Two versions fit side by side in the chart and the Compose file as shipped: A/B tests need it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from model_store.store import open_store
from service.engine.loading import EngineSettings, kv_cache_bytes
from service.versions.memory_budget import CPU_SHARE
from service.versions.memory_estimate import MemoryEstimate
from tests.deploy.charts import container
from tests.docs.blocks import ROOT

GIB = 2**30


def needed(count: int, cache: Path) -> int:
    """Bytes that the engines of the ``count`` largest packaged versions take on a CPU."""
    kept = kv_cache_bytes(EngineSettings(), "cpu")
    estimate = MemoryEstimate(cache_dir=cache, kv_cache_bytes=kept, device="cpu")
    store = open_store()
    sizes = sorted((estimate(store.get(name).manifest) for name in store.names()), reverse=True)
    assert len(sizes) >= count
    return sum(sizes[:count])


@pytest.fixture(scope="module")
def two_versions(tmp_path_factory: pytest.TempPathFactory) -> int:
    return needed(2, tmp_path_factory.mktemp("cache"))


def test_in_a_pod_of_the_chart(two_versions: int) -> None:
    limit = container({})["resources"]["limits"]["memory"]
    assert limit.endswith("Gi")
    assert two_versions <= int(limit.removesuffix("Gi")) * GIB * CPU_SHARE


def test_in_the_container_of_the_compose_file(two_versions: int) -> None:
    compose = yaml.safe_load((ROOT / "deploy/compose/compose.yaml").read_text())
    limit = compose["services"]["requery"]["mem_limit"]
    assert limit.endswith("g")
    assert two_versions <= int(limit.removesuffix("g")) * GIB * CPU_SHARE
