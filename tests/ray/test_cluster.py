"""The service on two Ray nodes: the contract, and what is lost when parts of it are killed."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from tests.contract.campaign import Campaign
from tests.contract.document import Operation, operations
from tests.contract.subject import NAMES
from tests.contract.wire import Answer, Sent
from tests.ray.cluster import RayCluster
from tests.ray.dependencies import VERSION
from tests.ray.test_config import config
from tests.support.raw_http import Caller, rewrite_request

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1800)]

ENGINE = f"engine-{VERSION}"
LONG = 20_000
REWRITING = {"/rewrite", "/rewrite/batch", "/relevance"}


def scripted(*, engines: int, ingress: int = 2) -> dict[str, Any]:
    """The packaged config with scripted engines, few resources and fixed numbers of replicas."""
    found = config()
    (application,) = found["applications"]
    application["args"] = {"versions": [VERSION], "supply": "tests.ray.dependencies:scripted"}
    application["runtime_env"]["env_vars"] = {
        "REQUERY_DEVICE": "cpu",
        "REQUERY_DEFAULT_VERSION": VERSION,
        "REQUERY_HOST": "127.0.0.1",
        # A deadline that a busy machine keeps.
        "REQUERY_DEFAULT_DEADLINE_MS": str(LONG),
        "REQUERY_MAX_DEADLINE_MS": str(LONG),
    }
    for deployment, replicas in zip(application["deployments"], (ingress, engines), strict=True):
        del deployment["autoscaling_config"]
        deployment["num_replicas"] = replicas
        deployment["ray_actor_options"] = {"num_cpus": 1}
        # So that both nodes have their share.
        deployment["max_replicas_per_node"] = -(-replicas // 2)
    application["deployments"][1]["name"] = ENGINE
    return found


@pytest.fixture(scope="module")
def cluster(nodes: RayCluster) -> RayCluster:
    """The service on both nodes."""
    nodes.deploy(scripted(engines=4))
    whole(nodes)
    return nodes


def whole(cluster: RayCluster) -> None:
    """Wait until everything runs, and every ingress knows of an engine."""
    cluster.until(
        lambda: all(
            # The controller may take those for running that have just been killed.
            cluster.replicas(name) == len(cluster.replica_pids(name)) == number
            for name, number in (("ingress", 2), (ENGINE, 4))
        ),
        "all replicas run",
    )
    cluster.until(lambda: all(status(cluster, "/readyz") == 200 for _ in range(8)), "ready")


def status(cluster: RayCluster, path: str) -> int:
    try:
        return httpx.get(cluster.url + path, timeout=60).status_code
    except httpx.HTTPError:
        return 0


def rewrite(cluster: RayCluster, query: str, **fields: Any) -> httpx.Response:
    return httpx.post(f"{cluster.url}/rewrite", json={"query": query, **fields}, timeout=120)


class Remote:
    """The subject of a campaign of :mod:`tests.contract`, over HTTP."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=120)
        self.document = self._client.get("/openapi.json").json()
        self.requests = 0

    def send(self, sent: Sent) -> Answer:
        self.requests += 1
        response = self._client.request(
            sent.method,
            sent.target.decode("ascii"),
            headers=[*sent.headers],
            content=sent.body or None,
        )
        headers = [(name.lower(), value) for name, value in response.headers.raw]
        return Answer(response.status_code, headers, response.content)

    def close(self) -> None:
        self._client.close()

    def reset(self) -> None:
        """Nothing of what is sent here changes anything."""

    def faults(self) -> list[str]:
        return []


class RewritingCampaign(Campaign):
    """The operations that a search backend calls."""

    def __init__(self, remote: Remote) -> None:
        super().__init__(remote)  # type: ignore[arg-type] # all that is used of a subject
        self.operations = [
            one for one in operations(remote.document, NAMES | {"model_version": VERSION})
            if one.path in REWRITING
        ]  # fmt: skip

    def send(self, operation: Operation, label: str, sent: Sent, case: Any = None) -> Answer | None:
        """As ever, but for headers that no HTTP client would send: the proxy's parser has those."""
        if any(not value.decode("latin-1").isprintable() for _, value in sent.headers):
            return None
        return super().send(operation, label, sent, case)


@pytest.fixture
def campaign(cluster: RayCluster) -> Iterator[Campaign]:
    remote = Remote(cluster.url)
    made = RewritingCampaign(remote)
    yield made
    remote.close()
    assert not made.failures, "\n\n".join(made.failures)
    assert sum(made.statuses.values()), "nothing was sent"


class TestContract:
    """As tests/contract has it, through proxy, ingress and handle."""

    def test_valid_requests_succeed(self, campaign: Campaign) -> None:
        answers = list(campaign.samples())
        assert len(answers) >= len(REWRITING)
        assert all(answer is not None and answer.status == 200 for _, answer in answers)

    def test_hostile_values(self, campaign: Campaign) -> None:
        campaign.hostile_values(stride=67)
        assert {200, 422} <= set(campaign.statuses)

    def test_hostile_bodies(self, campaign: Campaign) -> None:
        campaign.hostile_bodies(stride=7)
        assert {200, 400, 422} <= set(campaign.statuses)

    def test_boundaries(self, campaign: Campaign) -> None:
        campaign.boundaries(stride=23)
        assert {200, 422} <= set(campaign.statuses)

    def test_statuses_and_sources(self, cluster: RayCluster) -> None:
        first = rewrite(cluster, "  Steele   STAKE one ")
        assert (
            first.json() | {"request_id": ""}
            == {
                "query": "steele stake one",
                "rewrites": [
                    {"text": "steel stake", "relevance": 0.98},
                    {"text": "metal stake", "relevance": 0.91},
                ],
                "status": "ok",
                "source": "engine",
                "model_version": VERSION,
                "request_id": "",
            }
            or first.json()["source"] == "memory"
        )
        sources = {rewrite(cluster, "steele stake one").json()["source"] for _ in range(20)}
        assert "memory" in sources, "each ingress has a cache of its own"
        early = rewrite(cluster, "held stake", deadline_ms=1500).json()
        assert (early["status"], early["source"]) == ("partial", "engine")
        assert [one["text"] for one in early["rewrites"]] == ["steel stake"]
        broken = rewrite(cluster, "broken stake").json()
        assert (broken["status"], broken["rewrites"]) == ("fallback", [])
        long = rewrite(cluster, "endless stake")
        assert (long.status_code, long.json()["type"]) == (
            422,
            "urn:requery:problem:query-too-long",
        )
        unknown = rewrite(cluster, "stake", model_version="no-such")
        assert unknown.status_code == 404

    def test_tags_cross_the_handle(self, cluster: RayCluster) -> None:
        pairs = [{"query": "a", "rewrite": "A"}, {"query": "a", "rewrite": "b"}]
        response = httpx.post(f"{cluster.url}/relevance", json={"pairs": pairs}, timeout=120)
        assert response.json()["relevance"] == [0.75, 0.25]


class TestGivingUp:
    """What nobody waits for ends on the engine's replica."""

    def test_a_caller_who_hangs_up_ends_the_generation(self, cluster: RayCluster) -> None:
        with Caller(cluster.port) as caller:
            caller.send(rewrite_request("held by nobody", deadline_ms=LONG))
            cluster.until(lambda: noted(cluster, "begun: held by nobody") == 1, "it has begun")
        cluster.until(lambda: noted(cluster, "ended early: held by nobody") == 1, "it has ended")

    def test_a_deadline_ends_tagging(self, cluster: RayCluster) -> None:
        body = {"pairs": [{"query": "held", "rewrite": "b"}], "deadline_ms": 1500}
        response = httpx.post(f"{cluster.url}/relevance", json=body, timeout=120)
        assert response.status_code == 504
        cluster.until(lambda: noted(cluster, "ended early: tag") == 1, "it has ended")


def noted(cluster: RayCluster, line: str) -> int:
    return sum(said == line for _, said in cluster.noted())


def begun(cluster: RayCluster, queries: list[str]) -> int:
    return sum(noted(cluster, f"begun: {query}") for query in queries)


class Load:
    """Shoppers who ask new queries, one after the other, and what they got."""

    def __init__(self, cluster: RayCluster, shoppers: int = 4) -> None:
        self._cluster = cluster
        self._done = threading.Event()
        self.answers: Counter[tuple[int, str]] = Counter()
        self.lost: list[str] = []
        self._threads = [
            threading.Thread(target=self._shop, args=(number,)) for number in range(shoppers)
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()

    def more(self, n: int) -> Callable[[], bool]:
        """Whether so many more answers have come than now."""
        enough = self.answers.total() + n
        return lambda: self.answers.total() >= enough

    def _shop(self, number: int) -> None:
        with httpx.Client(base_url=self._cluster.url, timeout=120) as client:
            count = 0
            while not self._done.is_set():
                count += 1
                name = f"{number}x{count}".translate(str.maketrans("0123456789", "abcdefghij"))
                try:
                    response = client.post("/rewrite", json={"query": f"stake {name}"})
                except httpx.HTTPError as error:
                    self.lost.append(repr(error))
                    continue
                content = response.json()
                self.answers[response.status_code, content.get("status", "")] += 1
                time.sleep(0.01)


def unharmed(load: Load) -> None:
    assert not load.lost
    assert {code for code, _ in load.answers} <= {200, 503}, load.answers
    assert load.answers[200, "ok"] > 0


class TestLosses:
    def test_an_engine_that_is_killed_costs_fallbacks_at_most(self, cluster: RayCluster) -> None:
        victim, *others = cluster.replica_pids(ENGINE)
        assert len(others) == 3
        with Load(cluster) as load:
            cluster.until(load.more(20), "load")
            os.kill(victim, signal.SIGKILL)
            cluster.until(load.more(60), "load goes on")
            whole(cluster)
        assert victim not in cluster.replica_pids(ENGINE)
        unharmed(load)

    def test_an_ingress_that_is_killed_costs_no_request(self, cluster: RayCluster) -> None:
        victim, _ = cluster.replica_pids("ingress")
        queries = [f"held {name}" for name in "abcdefgh"]
        with Load(cluster) as load, ThreadPoolExecutor(len(queries)) as pool:
            # Some of these are under way in the victim.
            held = [pool.submit(rewrite, cluster, one, deadline_ms=8000) for one in queries]
            cluster.until(lambda: begun(cluster, queries) == len(queries), "they have begun")
            os.kill(victim, signal.SIGKILL)
            answers = [one.result() for one in held]
            cluster.until(load.more(60), "load goes on")
            cluster.until(lambda: victim not in cluster.replica_pids("ingress"), "it is gone")
            whole(cluster)
        unharmed(load)
        assert [one.status_code for one in answers] == [200] * len(queries)
        assert {one.json()["status"] for one in answers} == {"partial"}
        assert begun(cluster, queries) > len(queries), "the proxy gave them to another replica"

    def test_without_engines_readyz_tells_and_they_are_picked_up_again(
        self, cluster: RayCluster
    ) -> None:
        for pid in cluster.replica_pids(ENGINE):
            os.kill(pid, signal.SIGKILL)
        answer = rewrite(cluster, "stake without engines", deadline_ms=1500)
        assert answer.status_code == 200
        cluster.until(lambda: status(cluster, "/readyz") == 503, "it is not ready")
        whole(cluster)
        cluster.until(
            lambda: rewrite(cluster, "stake with engines").json()["status"] == "ok", "answers"
        )

    def test_a_node_that_is_lost_costs_no_request(self, cluster: RayCluster) -> None:
        """Last: the node does not come back."""
        assert cluster.replica_pids("ingress", node="1"), "the node has its share"
        assert cluster.replica_pids(ENGINE, node="1")
        queries = [f"held {name}" for name in "ijklmnop"]
        with Load(cluster) as load, ThreadPoolExecutor(len(queries)) as pool:
            held = [pool.submit(rewrite, cluster, one, deadline_ms=LONG) for one in queries]
            cluster.until(lambda: begun(cluster, queries) == len(queries), "they have begun")
            cluster.kill_node()
            answers = [one.result() for one in held]
            cluster.until(load.more(100), "load goes on")
            cluster.until(lambda: status(cluster, "/readyz") == 200, "ready")
        unharmed(load)
        assert {one.status_code for one in answers} <= {200, 503}
        assert 200 in {one.status_code for one in answers}
        assert json.loads(rewrite(cluster, "stake after it").content)["status"] == "ok"
