"""The Serve config and the manifest for KubeRay: valid, the same, and what the code expects."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.config.settings import Settings

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "deploy/ray/serve.yaml"
MANIFEST = ROOT / "deploy/ray/rayservice.yaml"


def config() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(CONFIG.read_text())
    return found


def manifest() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(MANIFEST.read_text())
    return found


def groups() -> list[dict[str, Any]]:
    cluster = manifest()["spec"]["rayClusterConfig"]
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


def test_the_manifest_embeds_the_config() -> None:
    assert yaml.safe_load(manifest()["spec"]["serveConfigV2"]) == config()


def test_every_version_has_a_deployment_with_its_options() -> None:
    (application,) = config()["applications"]
    names = {one["name"] for one in application["deployments"]}
    assert names == {"ingress", *(f"engine-{v}" for v in application["args"]["versions"])}


def test_settings_in_the_config_are_those_of_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    (application,) = config()["applications"]
    variables = application["runtime_env"]["env_vars"]
    assert {name.removeprefix("REQUERY_").lower() for name in variables} <= set(
        Settings.model_fields
    )
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert Settings().default_version in application["args"]["versions"]


def test_the_proxy_waits_longer_than_any_deadline() -> None:
    assert config()["http_options"]["request_timeout_s"] * 1000 > Settings().max_deadline_ms


def test_replicas_end_later_than_their_generations() -> None:
    (application,) = config()["applications"]
    for deployment in application["deployments"]:
        assert deployment["graceful_shutdown_timeout_s"] > Settings().generation_timeout_s


def test_every_node_of_the_manifest_has_what_a_replica_needs() -> None:
    for group in groups():
        (container,) = group["template"]["spec"]["containers"]
        variables = {one["name"]: one for one in container["env"]}
        callback = variables["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"]["value"]
        assert callback == "service.ray.edge:middlewares"
        assert variables["REQUERY_REDIS_URL"]["valueFrom"]["secretKeyRef"]
        assert container["securityContext"]["runAsNonRoot"] is True
        assert group["template"]["spec"]["terminationGracePeriodSeconds"] > 40


def test_gpus_are_where_engines_are() -> None:
    (application,) = config()["applications"]
    wanted = max(
        deployment["ray_actor_options"].get("num_gpus", 0)
        * deployment["autoscaling_config"]["max_replicas"]
        for deployment in application["deployments"]
    )
    there = 0
    for group in groups():
        (container,) = group["template"]["spec"]["containers"]
        each = int(container["resources"]["limits"].get("nvidia.com/gpu", 0))
        there += each * group.get("maxReplicas", 1)
    assert there >= wanted


@pytest.mark.integration
def test_ray_reads_the_config() -> None:
    with warnings.catch_warnings():
        # Ray's own use of pydantic.
        warnings.simplefilter("ignore")
        from ray.serve.schema import ServeDeploySchema

    schema = ServeDeploySchema.model_validate(config())
    (application,) = schema.applications
    assert application.import_path == "service.ray.app:build"
    assert not set(_keys(config())) - set(_keys(schema.model_dump(exclude_unset=True))), "unread"


def _keys(value: Any, path: str = "") -> list[str]:
    if isinstance(value, dict):
        return [one for k, v in value.items() for one in (f"{path}.{k}", *_keys(v, f"{path}.{k}"))]
    if isinstance(value, list):
        return [one for i, v in enumerate(value) for one in _keys(v, f"{path}[{i}]")]
    return []


# Ray's own models use what Pydantic has deprecated, when Ray is first imported.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_service_link_of_kubernetes_is_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """KubeRay's pods get them beside any Service named requery."""
    from service.ray.app import _settings

    monkeypatch.setenv("REQUERY_PORT", "tcp://10.0.0.1:80")
    assert _settings().port == 8000
