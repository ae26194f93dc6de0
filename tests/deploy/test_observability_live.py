"""A real Prometheus takes the metrics, the rules and every query."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import httpx
import pytest
import yaml

from service.security.api_keys import entry, new_key
from tests.deploy.conftest import Promtool
from tests.deploy.observability import FOLDER, RULE_TESTS, RULES, dashboard_queries, rule_queries
from tests.deploy.prometheus import Prometheus, configuration, running
from tests.support.scripted_process import ScriptedProcess


class Traffic:
    """A service that wants keys, and a Prometheus with one of the scope metrics.

    Args:
        service: the process.
        prometheus: scrapes it.
        key: of the scope rewrite.
    """

    def __init__(self, service: ScriptedProcess, prometheus: Prometheus, key: str) -> None:
        self.service = service
        self.prometheus = prometheus
        self._key = key
        self._numbers = count()

    def ask(self) -> None:
        """A query that nobody has asked before, and one that somebody has."""
        for query in (f"stake {next(self._numbers)}", "steele stake"):
            response = httpx.post(
                f"{self.service.url}/rewrite",
                json={"query": query, "unit_id": query},
                headers={"authorization": f"Bearer {self._key}"},
                trust_env=False,
                timeout=30,
            )
            assert response.status_code == 200, response.text

    def metrics(self, key: str) -> httpx.Response:
        return httpx.get(
            f"{self.service.url}/metrics",
            headers={"authorization": f"Bearer {key}"},
            trust_env=False,
            timeout=30,
        )


@pytest.fixture(scope="module")
def keys() -> dict[str, str]:
    return {scope: new_key() for scope in ("rewrite", "metrics")}


@pytest.fixture(scope="module")
def traffic(
    programs: dict[str, Path], keys: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Traffic]:
    folder = tmp_path_factory.mktemp("observability")
    file = folder / "keys.yaml"
    file.write_text("".join(entry(scope, key, [scope], None) for scope, key in keys.items()))
    with ScriptedProcess(api_keys_file=file) as service:
        target = f"127.0.0.1:{service.port}"
        config = configuration(folder, targets=[target], key=keys["metrics"])
        with running(programs["prometheus"], config) as prometheus:
            yield Traffic(service, prometheus, keys["rewrite"])


def test_it_scrapes_the_service_with_a_key_and_answers(traffic: Traffic) -> None:
    for scope in ("job", "instance"):
        (up,) = traffic.prometheus.until("up == 1")
        assert up["metric"][scope]
    (sample,) = traffic.prometheus.until(
        'requery_answers_total{kind="shopper", result="in_time"} > 3', traffic.ask
    )
    assert sample["metric"] == {
        "__name__": "requery_answers_total",
        "instance": f"127.0.0.1:{traffic.service.port}",
        "job": "requery",
        "kind": "shopper",
        "result": "in_time",
        "version": "test-1",
    }
    (ratio,) = traffic.prometheus.until(
        'sum(requery_cache_operations_total{op="get", result="hit"}) / '
        'sum(requery_cache_operations_total{tier="memory", op="get"}) > 0.3',
        traffic.ask,
    )
    assert float(ratio["value"][1]) <= 0.5


def test_every_query_of_dashboards_and_rules_is_answered(traffic: Traffic) -> None:
    traffic.prometheus.until(
        'sum(rate(requery_answers_total{result="in_time"}[1m])) > 0', traffic.ask
    )
    for query in [*dashboard_queries(), *rule_queries()]:
        traffic.prometheus.query(query.text)


@pytest.mark.parametrize(
    "title",
    [
        "Goodput A", "Share in time A", "p99 A", "Cache hits A", "Traffic by version A",
        "Traffic by arm A", "Latency of /rewrite D", "p99 by stage A", "Hit ratio by tier A",
        "Tokens A", "Relevance of candidates A", "Mean relevance A",
        "Accepted rewrites per query A",
        "Candidates by verdict A", "Breakers A", "Routing A", "Resident memory A",
        "Replicas with an engine A", "Kill switch A", "Candidates under way B",
    ],
)  # fmt: skip
def test_panels_show_something_after_a_little_traffic(traffic: Traffic, title: str) -> None:
    (query,) = [one for one in dashboard_queries() if one.place == f"requery: {title}"]
    samples = traffic.prometheus.until(query.text, traffic.ask)
    values = [float(sample["value"][1]) for sample in samples]
    # A share of nothing (of Redis, of batches) is none.
    there = [value for value in values if not math.isnan(value)]
    assert there
    assert min(there) >= 0


def test_it_takes_our_rules_and_none_of_them_fails(traffic: Traffic) -> None:
    traffic.prometheus.until('job:requery_shopper_bad:ratio_rate5m{job="requery"}', traffic.ask)
    answer = traffic.prometheus.client.get(f"{traffic.prometheus.url}/api/v1/rules").json()
    rules = [rule for group in answer["data"]["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == {query.place for query in rule_queries()}
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}  # unknown: not evaluated yet
    assert not [rule["name"] for rule in rules if rule.get("alerts")]


def test_its_linter_finds_nothing_in_the_metrics(
    traffic: Traffic, keys: dict[str, str], promtool: Promtool
) -> None:
    traffic.ask()
    answer = traffic.metrics(keys["metrics"])
    assert "requery_answers_total" in answer.text
    assert traffic.metrics(keys["rewrite"]).status_code == 403
    assert promtool("check", "metrics", given=answer.text) == ""


def test_rules_and_configuration_are_well_formed(promtool: Promtool, tmp_path: Path) -> None:
    said = promtool("check", "rules", *RULES)
    found = sum(len(yaml.safe_load(path.read_text())["groups"]) > 0 for path in RULES)
    assert said.count("SUCCESS") == found
    promtool("check", "config", "--syntax-only", FOLDER / "prometheus.yml")
    promtool("check", "config", configuration(tmp_path, targets=["a:8000"], key="k"))


@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.stem)
def test_alerts_fire_when_they_should_and_only_then(promtool: Promtool, path: Path) -> None:
    assert "SUCCESS" in promtool("test", "rules", path)
