"""The chart as Helm renders it, for several sets of values."""

from __future__ import annotations

from functools import cache
from typing import Any

import helm_python
import yaml

from tests.docs.blocks import ROOT

CHART = ROOT / "deploy/helm/requery"
RELEASE, NAMESPACE = "rq", "shop"

Manifest = dict[str, Any]

VALUE_SETS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "redis and settings": {
        "redis": {"url": "redis://redis.shop.svc:6379/0"},
        "logSalt": {"existingSecret": "salt"},
        "settings": {
            "console": False,
            "cache_memory_bytes": 1_234_567_890,
            "cache_ttl_jitter": 0.25,
            "warm_queries": "a; b: 'c'",
            "engine_threads": 3,
        },
    },
    "gpu": {
        "device": "nvidia",
        "runtimeClassName": "nvidia",
        "nodeSelector": {"nvidia.com/gpu.present": "true"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "strategy": {"maxSurge": 0, "maxUnavailable": 1},
    },
    "replicas": {
        "replicaCount": 5,
        "redis": {"existingSecret": "redis", "existingSecretKey": "url"},
        "networkPolicy": {
            "from": [{"podSelector": {"matchLabels": {"app": "search"}}}],
            "redisTo": [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
            "redisPorts": [6379, 26379],
            "extraEgress": [{"ports": [{"port": 443, "protocol": "TCP"}]}],
        },
        "imagePullSecrets": [{"name": "registry"}],
        "podAnnotations": {"note": "1"},
        "podLabels": {"team": "search"},
        "priorityClassName": "shoppers",
    },
    "keda": {
        "autoscaling": {
            "kind": "keda",
            "minReplicas": 1,
            "maxReplicas": 12,
            "keda": {"authenticationRef": "prometheus", "authModes": "bearer"},
        },
        "podMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
        "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}},
        "dashboard": {"enabled": True},
    },
    "hpa": {"autoscaling": {"kind": "hpa"}},
    "volumes": {
        "weights": {"emptyDir": {"sizeLimit": "2Gi"}},
        "extraVolumes": [{"name": "versions", "persistentVolumeClaim": {"claimName": "versions"}}],
        "extraVolumeMounts": [{"name": "versions", "mountPath": "/versions", "readOnly": True}],
        "settings": {"model_sources": "/versions"},
    },
    "ingress": {
        "ingress": {
            "enabled": True,
            "className": "nginx",
            "annotations": {"nginx.ingress.kubernetes.io/proxy-body-size": "1m"},
            "hosts": [{"host": "rewrite.example.com"}, {"host": "b.example.com", "path": "/q"}],
            "tls": [{"hosts": ["rewrite.example.com"], "secretName": "tls"}],
        },
        "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/r"}},
        "extraEnv": [{"name": "AWS_REGION", "value": "eu-west-1"}],
        "envFrom": [{"secretRef": {"name": "object-store"}}],
    },
    "gateway": {
        "httpRoute": {
            "enabled": True,
            "parentRefs": [{"name": "gateway", "namespace": "infra"}],
            "hostnames": ["rewrite.example.com"],
        },
        "serviceAccount": {"create": False, "name": "search"},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}
        ],
    },
    "everything off": {
        "replicaCount": 1,
        "networkPolicy": {"enabled": False},
        "podDisruptionBudget": {"enabled": False},
    },
}


@cache
def chart() -> helm_python.Chart:
    """The chart, loaded once."""
    return helm_python.Chart.load(CHART)


def render(values: dict[str, Any], *, release: str = RELEASE) -> list[Manifest]:
    """All manifests of a release.

    Raises:
        helm_python.HelmError: the values are not ones that the chart takes.
    """
    rendered = chart().render(values, name=release, namespace=NAMESPACE)
    return [
        manifest
        for path, text in rendered.items()
        if path.endswith(".yaml")
        for manifest in yaml.safe_load_all(text)
        if manifest
    ]


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    """The manifests of a kind."""
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def deployment(values: dict[str, Any]) -> Manifest:
    """The one Deployment of a release."""
    (found,) = of_kind(render(values), "Deployment")
    return found


def pod(values: dict[str, Any]) -> Manifest:
    """The specification of its pods."""
    found: Manifest = deployment(values)["spec"]["template"]["spec"]
    return found


def container(values: dict[str, Any]) -> Manifest:
    """The one container of its pods."""
    (found,) = pod(values)["containers"]
    return dict(found)


def environment(values: dict[str, Any]) -> dict[str, str]:
    """The variables that are values themselves."""
    return {e["name"]: e["value"] for e in container(values)["env"] if "value" in e}
