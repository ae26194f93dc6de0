"""Dashboards, rules and runbook, as files: they fit each other and the metrics that there are."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from service.app.components import Components, build_components
from service.server.metrics import HttpMetrics
from service.telemetry.fast_metrics import FastCounters, FastHistograms
from tests.deploy.observability import (
    DASHBOARDS,
    FOLDER,
    OF_PROMETHEUS,
    RULE_TESTS,
    RUNBOOK,
    Query,
    alerts,
    dashboard,
    dashboard_queries,
    panels,
    recorded,
    rule_queries,
    selectors,
)
from tests.support.redis_server import free_port
from tests.support.service import serving

QUERIES = dashboard_queries() + rule_queries()


@dataclass
class Metric:
    """A series that /metrics may hold.

    Attributes:
        labels: names of its labels.
        values: those that each label has in a service that has just answered a query.
    """

    labels: set[str]
    values: dict[str, set[str]] = field(default_factory=dict)


@pytest.fixture(scope="module")
def known() -> dict[str, Metric]:
    """Every series of a service with a Redis that is not there, by name."""
    parts, text = asyncio.run(_answered())
    found = _declared(parts.registry, HttpMetrics().registry)
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            for label, value in sample.labels.items():
                found[sample.name].values.setdefault(label, set()).add(value)
    return found


async def _answered() -> tuple[Components, str]:
    """The parts of a service that has answered a query, and its metrics."""
    made: list[Components] = []

    def keep(*given: Any) -> Components:
        made.append(build_components(*given))
        return made[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.app.factory.build_components", keep)
        async with serving() as serve:
            service = await serve(redis_url=f"redis://127.0.0.1:{free_port()}")
            for _ in range(2):  # from the engine, then from memory
                await service.rewrite("steele stake")
            text = (await service.client.get("/metrics")).text
    return made[0], text


OURS = (FastCounters, FastHistograms)


def _declared(*registries: CollectorRegistry) -> dict[str, Metric]:
    """Label names by series, of those too that have no sample yet."""
    found = {}
    collectors: list[Any] = [one for of in registries for one in of._collector_to_names]
    for collector in collectors:
        # Ours says what it is in what it describes, as the library has it.
        one = next(iter(collector.describe())) if isinstance(collector, OURS) else collector
        kind = one.type if one is not collector else getattr(one, "_type", None)
        name = one.name if one is not collector else getattr(one, "_name", "")
        labels = set(getattr(one, "_labelnames", ()))
        if kind is None:  # the process collector: gauges and counters without labels
            names = {sample.name for family in collector.collect() for sample in family.samples}
        else:
            names = {
                "counter": {f"{name}_total"},
                "gauge": {name},
                "histogram": {f"{name}_sum", f"{name}_count"},
            }[kind]
            if kind == "histogram":
                found[f"{name}_bucket"] = Metric(labels | {"le"})
        found |= {name: Metric(labels) for name in names}
    return found


@pytest.mark.parametrize("query", QUERIES, ids=str)
def test_what_is_asked_for_exists(query: Query, known: dict[str, Metric]) -> None:
    read = selectors(query.text)
    assert read
    for selector in read:
        if selector.name in recorded() | {"up", "ALERTS"}:
            continue
        assert selector.name in known, f"no metric {selector.name}"
        metric = known[selector.name]
        assert {label for label, _, _ in selector.matchers} <= metric.labels | OF_PROMETHEUS
        for label, value, equal in selector.matchers:
            values = metric.values.get(label)
            if equal and label not in OF_PROMETHEUS | {"route", "code"} and values:
                assert value in values, f"{selector.name} never has {label}={value!r}"
        if len(read) == 1:
            assert selector.grouped_by <= metric.labels | OF_PROMETHEUS


@pytest.mark.parametrize("query", QUERIES, ids=str)
def test_counters_are_read_by_their_rate_and_quantiles_by_bucket(query: Query) -> None:
    flat = re.sub(r"\s+", " ", query.text)
    for name in re.findall(r"\brequery_\w+_(?:total|sum|count|bucket)\b", flat):
        assert re.search(rf"(?:rate|increase)\({name}[{{\[]", flat), f"{name} without a rate"
    for inner in re.findall(r"histogram_quantile\((.*)", flat):
        assert re.match(r" ?[\d.]+, sum by \([^)]*\ble\b[^)]*\) \(rate\(requery_\w+_bucket", inner)


class TestDashboards:
    @pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
    def test_each_panel_says_what_it_shows_and_in_what(self, path: Any) -> None:
        shown = panels(path)
        assert len({panel["id"] for panel in dashboard(path)["panels"]}) == len(
            dashboard(path)["panels"]
        )
        assert len({panel["title"] for panel in shown}) == len(shown)
        for panel in shown:
            assert panel["description"].endswith("."), panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
            assert panel["targets"], panel["title"]

    @pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
    def test_panels_lie_side_by_side(self, path: Any) -> None:
        taken: set[tuple[int, int]] = set()
        for panel in dashboard(path)["panels"]:
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken, panel["title"]
            taken |= cells

    @pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
    def test_queries_keep_to_the_chosen_replicas(self, path: Any) -> None:
        for panel in panels(path):
            for target in panel["targets"]:
                chosen = target["expr"].count('job=~"$job"')
                assert chosen == len(selectors(_plain(target["expr"]))), target["expr"]
                # A fixed window would be shorter than two scrapes, or hide what is zoomed into.
                assert not re.search(r"rate\([^[]*\[\d", target["expr"]), target["expr"]

    def test_grafana_finds_the_dashboards_and_their_source(self) -> None:
        provisioning = FOLDER / "grafana"
        sources = yaml.safe_load((provisioning / "datasources" / "prometheus.yml").read_text())
        assert [one["type"] for one in sources["datasources"]] == ["prometheus"]
        config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
        assert config["rule_files"] == ["rules/*.yml"]
        scrape = config["global"]
        (source,) = sources["datasources"]
        assert source["jsonData"]["timeInterval"] == scrape["scrape_interval"]
        providers = yaml.safe_load((provisioning / "dashboards" / "requery.yml").read_text())
        assert [one["type"] for one in providers["providers"]] == ["file"]


class TestAlerts:
    @pytest.mark.parametrize("name", sorted(alerts()))
    def test_each_says_how_bad_it_is_and_what_it_means(self, name: str) -> None:
        rule = alerts()[name]
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert set(rule["annotations"]) == {"summary", "description", "runbook_url"}
        assert rule["annotations"]["runbook_url"] == f"docs/runbook.md#{name.lower()}"

    def test_each_has_a_section_of_the_runbook_and_each_section_an_alert(self) -> None:
        sections = re.split(r"^### ", RUNBOOK.read_text(), flags=re.MULTILINE)[1:]
        found = [section.partition("\n")[0] for section in sections]
        assert sorted(found) == sorted(alerts())
        for section in sections:
            for part in ("**Means**", "**Look**", "**Do**"):
                assert section.count(part) == 1, section.partition("\n")[0]

    @pytest.mark.parametrize("name", sorted(alerts()))
    def test_each_is_tested_where_it_fires_and_where_it_does_not(self, name: str) -> None:
        outcomes = {
            bool(look["exp_samples"])
            for path in RULE_TESTS
            for case in yaml.safe_load(path.read_text())["tests"]
            for look in case["promql_expr_test"]
            if look["expr"] == f'ALERTS{{alertname="{name}", alertstate="firing"}}'
        }
        assert outcomes == {True, False}

    def test_the_runbook_names_metrics_that_exist(self, known: dict[str, Metric]) -> None:
        named = set(re.findall(r"`(requery_\w+)", RUNBOOK.read_text()))
        assert named
        stems = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in known} | set(known)
        assert named <= stems


def _plain(text: str) -> str:
    return text.replace("$__rate_interval", "1m")
