"""The Helm chart: that it is what Kubernetes takes, and what it promises of pods."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import helm_python
import kubernetes_validate
import promql_parser
import pytest
import yaml
from pydantic import TypeAdapter

from service.config.settings import Settings
from tests.deploy.charts import (
    CHART,
    VALUE_SETS,
    container,
    deployment,
    environment,
    of_kind,
    pod,
    render,
)
from tests.docs.blocks import ROOT
from tests.docs.services import document
from tests.docs.shell import SETTINGS

OF_OTHERS = {"HTTPRoute", "PodMonitor", "PrometheusRule", "ScaledObject"}
"""Kinds that Kubernetes does not bring: test_helm_crds.py."""
BY_THE_CHART = {
    "host", "port", "cache_dir", "device", "api_keys_file", "redis_url", "log_query_salt",
    "admin_key", "shutdown_delay_s", "shutdown_grace_s",
}  # fmt: skip
"""Settings that have values of their own, or that the image sets."""

every_set = pytest.mark.parametrize("values", VALUE_SETS.values(), ids=VALUE_SETS)


@every_set
@pytest.mark.parametrize("kubernetes", ["1.27", "1.31", kubernetes_validate.latest_version()])
def test_every_manifest_is_one_that_kubernetes_knows(
    values: dict[str, Any], kubernetes: str
) -> None:
    manifests = [m for m in render(values) if m["kind"] not in OF_OTHERS]
    assert len(manifests) >= 3
    for manifest in manifests:
        kubernetes_validate.validate(manifest, kubernetes, strict=True)


def test_a_manifest_that_is_wrong_would_be_found() -> None:
    wrong = deployment({})
    wrong["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, "1.31", strict=True)


@every_set
def test_helm_has_nothing_to_say_against_it(values: dict[str, Any]) -> None:
    report = helm_python.lint(CHART, values)
    assert report["errors"] == []
    assert [m["error"] for m in report["messages"] if "icon" not in m["error"]] == []


@every_set
def test_names_fit_together(values: dict[str, Any]) -> None:
    manifests = render(values)
    names = [(m["kind"], m["metadata"]["name"]) for m in manifests]
    assert len(names) == len(set(names))
    labels = deployment(values)["spec"]["template"]["metadata"]["labels"]
    selectors = [
        m["spec"].get("podSelector", m["spec"].get("selector")) for m in manifests
        if m["kind"] in ("Deployment", "PodDisruptionBudget", "NetworkPolicy", "PodMonitor")
    ]  # fmt: skip
    selectors += [{"matchLabels": s["spec"]["selector"]} for s in of_kind(manifests, "Service")]
    for selector in selectors:
        assert selector["matchLabels"]
        assert selector["matchLabels"].items() <= labels.items()
    for account in of_kind(manifests, "ServiceAccount"):
        assert pod(values)["serviceAccountName"] == account["metadata"]["name"]


@every_set
def test_pods_have_no_privilege(values: dict[str, Any]) -> None:
    spec, one = pod(values), container(values)
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] == 10001
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert one["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    mounted = {m["mountPath"] for m in one["volumeMounts"] if not m.get("readOnly")}
    assert mounted <= {"/tmp", "/var/cache/requery"}


@every_set
def test_every_variable_is_a_setting_with_a_value_that_it_takes(values: dict[str, Any]) -> None:
    more = {e["name"] for e in values.get("extraEnv", ())}
    assert {e["name"] for e in container(values)["env"]} - more <= SETTINGS
    given = environment(values)
    ours = {n.removeprefix("REQUERY_").lower(): v for n, v in given.items() if n not in more}
    Settings(**ours)  # type: ignore[arg-type]
    names = [e["name"] for e in container(values)["env"]]
    assert len(names) == len(set(names))


def test_settings_reach_the_service_as_they_are_written() -> None:
    given = environment(VALUE_SETS["redis and settings"])
    settings = Settings(**{n.removeprefix("REQUERY_").lower(): v for n, v in given.items()})  # type: ignore[arg-type]
    assert settings.console is False
    assert settings.cache_memory_bytes == 1_234_567_890
    assert settings.cache_ttl_jitter == 0.25
    assert settings.warm_queries == "a; b: 'c'"
    assert settings.engine_threads == 3


def test_the_schema_of_values_knows_every_setting() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    known = schema["properties"]["settings"]["propertyNames"]["enum"]
    assert known == sorted(set(Settings.model_fields) - BY_THE_CHART), "write them into the schema"


@pytest.mark.parametrize(
    "values",
    [
        {"settings": {"cache_ttl": 5}},
        {"settings": {"host": "127.0.0.1"}},
        {"redis": {"url": "redis://:secret@redis:6379"}},
        {"keys": {"existingSecret": ""}},
        {"device": "tpu"},
        {"autoscaling": {"kind": "magic"}},
        {"replicas": 3},
        {"drain": {"delaySeconds": -1}},
        {"ingress": {"enabled": True}},
        {"httpRoute": {"enabled": True}},
        {"prometheusRule": {"overrides": {"RequeryDown": {"severity": "loud"}}}},
        VALUE_SETS["ingress"] | VALUE_SETS["gateway"],
    ],
    ids=str,
)
def test_values_that_it_cannot_take_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(helm_python.HelmError):
        render(values)


class TestReachedFromOutside:
    def test_by_an_ingress_with_tls(self) -> None:
        (found,) = of_kind(render(VALUE_SETS["ingress"]), "Ingress")
        assert found["spec"]["ingressClassName"] == "nginx"
        assert [rule["host"] for rule in found["spec"]["rules"]] == [
            "rewrite.example.com", "b.example.com"
        ]  # fmt: skip
        (service,) = of_kind(render(VALUE_SETS["ingress"]), "Service")
        for rule in found["spec"]["rules"]:
            (path,) = rule["http"]["paths"]
            assert path["backend"]["service"] == {
                "name": service["metadata"]["name"], "port": {"name": "http"}
            }  # fmt: skip

    def test_by_a_gateway(self) -> None:
        (found,) = of_kind(render(VALUE_SETS["gateway"]), "HTTPRoute")
        (service,) = of_kind(render(VALUE_SETS["gateway"]), "Service")
        ((backend,),) = (rule["backendRefs"] for rule in found["spec"]["rules"])
        assert backend == {"name": service["metadata"]["name"], "port": 8000}
        assert found["spec"]["parentRefs"] == [{"name": "gateway", "namespace": "infra"}]

    def test_by_default_not_at_all(self) -> None:
        assert not {m["kind"] for m in render({})} & {"Ingress", "HTTPRoute"}


class TestPods:
    def test_the_image_is_that_of_this_release(self) -> None:
        release = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
        assert container({})["image"] == f"requery:{release}-cpu"
        assert container(VALUE_SETS["gpu"])["image"] == f"requery:{release}-nvidia"
        assert container({"image": {"tag": "mine"}})["image"] == "requery:mine"

    def test_they_take_more_variables_and_an_account_with_a_role(self) -> None:
        one = container(VALUE_SETS["ingress"])
        assert {"name": "AWS_REGION", "value": "eu-west-1"} in one["env"]
        assert one["envFrom"] == [{"secretRef": {"name": "object-store"}}]
        (account,) = of_kind(render(VALUE_SETS["ingress"]), "ServiceAccount")
        assert account["metadata"]["annotations"]["eks.amazonaws.com/role-arn"]
        assert not of_kind(render(VALUE_SETS["gateway"]), "ServiceAccount")
        assert pod(VALUE_SETS["gateway"])["serviceAccountName"] == "search"

    def test_they_are_spread_over_nodes_and_zones(self) -> None:
        keys = [c["topologyKey"] for c in pod({})["topologySpreadConstraints"]]
        assert keys == ["kubernetes.io/hostname", "topology.kubernetes.io/zone"]
        (own,) = pod(VALUE_SETS["gateway"])["topologySpreadConstraints"]
        assert own["topologyKey"] == "rack"

    def test_on_nvidia_they_tolerate_the_taint_of_gpu_nodes(self) -> None:
        (found,) = pod({"device": "nvidia"})["tolerations"]
        assert found["key"] == "nvidia.com/gpu"
        assert "tolerations" not in pod({})

    def test_probes_ask_for_what_they_are_for(self) -> None:
        probes = {k: v["httpGet"]["path"] for k, v in container({}).items() if k.endswith("Probe")}
        assert probes == {
            "startupProbe": "/livez", "livenessProbe": "/livez", "readinessProbe": "/readyz"
        }  # fmt: skip
        assert set(probes.values()) <= document()["paths"].keys()
        (port,) = container({})["ports"]
        assert port["containerPort"] == Settings().port

    def test_they_are_killed_only_after_they_have_finished(self) -> None:
        for drain in ({}, {"delaySeconds": 20, "graceSeconds": 40}):
            values = {"drain": drain}
            given = environment(values)
            drained = TypeAdapter(float).validate_python(given["REQUERY_SHUTDOWN_DELAY_S"])
            drained += TypeAdapter(float).validate_python(given["REQUERY_SHUTDOWN_GRACE_S"])
            assert pod(values)["terminationGracePeriodSeconds"] > drained

    def test_keys_are_mounted_as_a_folder_that_changes_with_the_secret(self) -> None:
        (mount,) = [m for m in container({})["volumeMounts"] if m["name"] == "keys"]
        (volume,) = [v for v in pod({})["volumes"] if v["name"] == "keys"]
        assert "subPath" not in mount, "such a mount stays as it was"
        assert mount["readOnly"] is True
        assert volume["secret"]["secretName"] == "requery-keys"
        file = Path(environment({})["REQUERY_API_KEYS_FILE"])
        assert str(file.parent) == mount["mountPath"]
        assert "items" not in volume["secret"], "all entries become files, keys.yaml among them"

    def test_secrets_are_no_values(self) -> None:
        given = container(
            VALUE_SETS["replicas"] | {"logSalt": {"existingSecret": "salt"}}
        )["env"]  # fmt: skip
        secret = {e["name"]: e["valueFrom"]["secretKeyRef"] for e in given
                  if "secretKeyRef" in e.get("valueFrom", {})}  # fmt: skip
        assert secret == {
            "REQUERY_REDIS_URL": {"name": "redis", "key": "url"},
            "REQUERY_LOG_QUERY_SALT": {"name": "salt", "key": "salt"},
        }

    def test_a_gpu_is_asked_for_on_nvidia_alone(self) -> None:
        assert container(VALUE_SETS["gpu"])["resources"]["limits"]["nvidia.com/gpu"] == 1
        assert environment(VALUE_SETS["gpu"])["REQUERY_DEVICE"] == "cuda"
        assert "nvidia.com/gpu" not in container({})["resources"]["limits"]

    def test_on_a_cpu_the_engine_keeps_to_the_cores_that_are_asked_for(self) -> None:
        (threads,) = [e for e in container({})["env"] if e["name"] == "REQUERY_ENGINE_THREADS"]
        assert threads["valueFrom"]["resourceFieldRef"]["resource"] == "requests.cpu"
        assert "cpu" in container({})["resources"]["requests"]

    def test_weights_of_the_image_are_hidden_only_by_a_volume(self) -> None:
        paths = {m["mountPath"] for m in container({})["volumeMounts"]}
        assert paths == {"/tmp", "/etc/requery"}
        paths = {m["mountPath"] for m in container(VALUE_SETS["volumes"])["volumeMounts"]}
        assert {"/var/cache/requery", "/versions"} <= paths


class TestNetwork:
    def test_only_neighbours_and_the_scraper_get_in(self) -> None:
        (policy,) = of_kind(render({}), "NetworkPolicy")
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
        (rule,) = policy["spec"]["ingress"]
        assert rule["ports"] == [{"port": "http", "protocol": "TCP"}]
        assert rule["from"][0] == {"podSelector": {}}
        assert len(rule["from"]) == 2

    def test_nothing_but_names_and_redis_is_reached(self) -> None:
        def ports(values: dict[str, Any]) -> list[list[int]]:
            (policy,) = of_kind(render(values), "NetworkPolicy")
            return [[port["port"] for port in rule["ports"]] for rule in policy["spec"]["egress"]]

        assert ports({}) == [[53, 53]]
        assert ports(VALUE_SETS["redis and settings"]) == [[53, 53], [6379]]
        assert ports(VALUE_SETS["replicas"]) == [[53, 53], [6379, 26379], [443]]


class TestScaling:
    @pytest.mark.parametrize("kind", ["keda", "hpa"])
    def test_replicas_are_left_to_the_autoscaler(self, kind: str) -> None:
        values = {"autoscaling": {"kind": kind}}
        assert "replicas" not in deployment(values)["spec"]
        (scaler,) = (
            m for m in render(values)
            if m["kind"] in ("ScaledObject", "HorizontalPodAutoscaler")
        )  # fmt: skip
        assert scaler["spec"]["scaleTargetRef"]["name"] == deployment(values)["metadata"]["name"]

    def test_without_one_there_are_as_many_as_said(self) -> None:
        assert deployment(VALUE_SETS["replicas"])["spec"]["replicas"] == 5

    async def test_it_goes_by_metrics_that_are_there(self) -> None:
        there = await _metrics()
        (keda,) = of_kind(render(VALUE_SETS["keda"]), "ScaledObject")
        each = [trigger["metadata"]["query"] for trigger in keda["spec"]["triggers"]]
        for query in each:
            promql_parser.parse(query)
        queries = " ".join(each)
        named = set(re.findall(r"\brequery_\w+", queries))
        assert named >= {
            "requery_admission_in_use", "requery_admission_waiting", "requery_shed_total"
        }  # fmt: skip
        assert named <= there
        (hpa,) = of_kind(render(VALUE_SETS["hpa"]), "HorizontalPodAutoscaler")
        for metric in hpa["spec"]["metrics"]:
            name = metric["pods"]["metric"]["name"]
            # The adapter makes rates of counters, and takes the ending away.
            assert name in there or f"{name}_total" in there


async def _metrics() -> set[str]:
    from tests.support.engine import ScriptedEngine
    from tests.support.service import serving

    async with serving() as serve:
        service = await serve(ScriptedEngine({"a": (("b", 0.9),)}))
        await service.rewrite("a")
        text = (await service.client.get("/metrics")).text
    return set(re.findall(r"^(requery_\w+)", text, re.MULTILINE))


class TestObservability:
    @pytest.mark.parametrize("folder", ["rules", "dashboards"])
    def test_the_chart_has_the_files_themselves(self, folder: str) -> None:
        assert (CHART / folder).is_symlink(), "Helm follows it; a copy would grow stale"
        assert (CHART / folder).resolve() == ROOT / "deploy/observability" / folder

    def test_its_rules_are_those_of_prometheus(self) -> None:
        rules = of_kind(render(VALUE_SETS["keda"], release="requery"), "PrometheusRule")
        files = sorted((ROOT / "deploy/observability/rules").glob("*.yml"))
        assert files
        assert {r["metadata"]["name"]: r["spec"] for r in rules} == {
            f"requery-{file.stem}": yaml.safe_load(file.read_text()) for file in files
        }

    def test_alerts_can_be_tuned(self) -> None:
        rules = of_kind(
            render(
                {
                    "prometheusRule": {
                        "enabled": True,
                        "runbookUrlPrefix": "https://wiki.example.com/",
                        "disabled": ["RequeryGone"],
                        "overrides": {"RequeryDown": {"for": "10m", "severity": "critical"}},
                    }
                }
            ),
            "PrometheusRule",
        )
        alerts = {
            rule["alert"]: rule
            for found in rules
            for group in found["spec"]["groups"]
            for rule in group["rules"]
            if "alert" in rule
        }
        assert "RequeryGone" not in alerts
        down = alerts["RequeryDown"]
        assert (down["for"], down["labels"]["severity"]) == ("10m", "critical")
        assert all(
            rule["annotations"]["runbook_url"].startswith("https://wiki.example.com/docs/")
            for rule in alerts.values()
        )

    def test_its_dashboards_are_those_of_grafana(self) -> None:
        (found,) = of_kind(render(VALUE_SETS["keda"]), "ConfigMap")
        files = sorted((ROOT / "deploy/observability/dashboards").glob("*.json"))
        assert {name: json.loads(text) for name, text in (found.get("data") or {}).items()} == {
            file.name: json.loads(file.read_text()) for file in files
        }

    def test_the_scraper_has_a_key(self) -> None:
        (monitor,) = of_kind(render(VALUE_SETS["keda"]), "PodMonitor")
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        assert endpoint["authorization"]["credentials"] == {
            "name": "requery-metrics-key", "key": "key"
        }  # fmt: skip
        assert endpoint["port"] in {port["name"] for port in container({})["ports"]}
        assert endpoint["path"] in document()["paths"]
