"""The packaged model behind Ray Serve on the CPU; only with ``RAY_TEST_MODEL=1``."""

from __future__ import annotations

import os
import statistics
import time

import httpx
import pytest

from tests.ray.cluster import RayCluster
from tests.ray.test_cluster import scripted, status

pytestmark = [
    pytest.mark.integration,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(
        os.environ.get("RAY_TEST_MODEL") != "1",
        reason="set RAY_TEST_MODEL=1: it takes 3 GB and minutes",
    ),
]

VERSION = "sft-1"
QUERIES = [f"{color} {thing}" for color in ("red", "blue") for thing in (
    "steele stake", "outdoor rug", "deck screws", "cieling fan", "shower curtain",
)]  # fmt: skip


def test_it_rewrites_and_tags(nodes: RayCluster) -> None:
    config = scripted(engines=1, ingress=1)
    (application,) = config["applications"]
    application["args"] = {"versions": [VERSION]}
    application["runtime_env"]["env_vars"]["REQUERY_DEFAULT_VERSION"] = VERSION
    engine = application["deployments"][1]
    engine["name"] = f"engine-{VERSION}"
    engine["ray_actor_options"] = {"num_cpus": 2}
    nodes.deploy(config)
    nodes.until(lambda: nodes.replicas(f"engine-{VERSION}") == 1, "the model is loaded")
    nodes.until(lambda: status(nodes, "/readyz") == 200, "ready")
    seconds = []
    with httpx.Client(base_url=nodes.url, timeout=120) as client:
        for query in QUERIES:
            begun = time.monotonic()
            answer = client.post("/rewrite", json={"query": query}).json()
            seconds.append(time.monotonic() - begun)
            assert answer["status"] in ("ok", "none")
            assert answer["source"] == "engine"
        pairs = [
            {"query": "steele stake", "rewrite": "steel stake"},
            {"query": "steele stake", "rewrite": "garden hose"},
        ]
        relevant, irrelevant = client.post("/relevance", json={"pairs": pairs}).json()["relevance"]
        metrics = client.get("/metrics").text
    assert relevant > irrelevant
    assert f'requery_tokens_total{{kind="generated",version="{VERSION}"}}' in metrics
    median = statistics.median(seconds)
    print(f"{len(seconds)} answers of the engine, one at a time: median {median:.2f} s")  # noqa: T201
