"""The Compose file: that it is one, that what it names is there, and that its settings work."""

from __future__ import annotations

import asyncio
import importlib.resources
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
import yaml

from service.cache.keys import SCHEMA
from service.config.settings import Settings
from service.security.keyring import check_keys_file
from tests.deploy.dockerfile import image_environment
from tests.docs.blocks import ROOT
from tests.docs.shell import SETTINGS
from tests.support.redis_server import RedisServer
from tests.support.scripted_process import ScriptedProcess
from tests.support.waiting import until

FOLDER = ROOT / "deploy/compose"
PATIENCE_S = 120


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    return found


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = compose["services"]
    return found


def test_it_is_a_compose_file(compose: dict[str, Any]) -> None:
    # The specification's own schema, as check-jsonschema brings it.
    folder = importlib.resources.files("check_jsonschema") / "builtin_schemas/vendor"
    schema = json.loads((folder / "compose-spec.json").read_text())
    assert [e.message for e in jsonschema_rs.iter_errors(schema, compose)] == []
    compose["services"]["requery"]["mem_limits"] = "4g"
    try:
        assert list(jsonschema_rs.iter_errors(schema, compose)), "it would take anything"
    finally:
        del compose["services"]["requery"]["mem_limits"]


def test_it_has_what_belongs_together(services: dict[str, Any]) -> None:
    assert {"requery", "redis", "prometheus", "grafana"} <= services.keys()
    for name, service in services.items():
        needed = service.get("depends_on", {})
        assert set(needed) <= services.keys(), name


def test_what_is_mounted_is_there(compose: dict[str, Any], services: dict[str, Any]) -> None:
    used = set()
    for service in services.values():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (FOLDER / source).exists(), source
                assert mount.endswith(":ro")
            else:
                used.add(source)
    assert used == compose["volumes"].keys()


def test_the_image_is_built_of_a_target_that_there_is(services: dict[str, Any]) -> None:
    build = services["requery"]["build"]
    assert (FOLDER / build["context"]).resolve() == ROOT
    assert f"AS {build['target']}\n" in (ROOT / "Dockerfile").read_text()


def test_nothing_has_more_rights_than_it_needs(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
        # One that asks for another build is given it by a tag that stays the same.
        assert not service["image"].endswith(":latest"), name
        assert ":" in service["image"], name


def test_every_variable_is_a_setting_with_a_value_that_it_takes(services: dict[str, Any]) -> None:
    given = services["requery"]["environment"]
    assert given.keys() <= SETTINGS
    Settings(**{n.removeprefix("REQUERY_").lower(): v for n, v in given.items()})


def test_the_service_has_time_to_finish(services: dict[str, Any]) -> None:
    given = services["requery"]["environment"]
    settings = Settings(**{n.removeprefix("REQUERY_").lower(): v for n, v in given.items()})
    grace = float(services["requery"]["stop_grace_period"].removesuffix("s"))
    assert grace > settings.shutdown_delay_s + settings.shutdown_grace_s


def test_prometheus_reads_the_key_that_is_made_for_it(services: dict[str, Any]) -> None:
    config = yaml.safe_load((ROOT / "deploy/observability/prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    (names,) = job["dns_sd_configs"]
    assert set(names["names"]) <= services.keys()
    assert names["port"] == Settings().port
    file = Path(job["authorization"]["credentials_file"])
    assert f"metrics-key:{file.parent}:ro" in services["prometheus"]["volumes"]
    assert file.name in (FOLDER / "make-keys.sh").read_text()


def test_grafana_finds_its_dashboards_and_prometheus(services: dict[str, Any]) -> None:
    mounts = {m.split(":")[1]: FOLDER / m.split(":")[0] for m in services["grafana"]["volumes"]}
    provisioning = "/etc/grafana/provisioning"
    for name, kind in (("dashboards", "providers"), ("datasources", "datasources")):
        for file in mounts[f"{provisioning}/{name}"].glob("*.yml"):
            for one in yaml.safe_load(file.read_text())[kind]:
                if kind == "providers":
                    assert one["options"]["path"] in mounts
                else:
                    host = httpx.URL(one["url"])
                    assert host.host in services
                    assert host.port == 9090


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """What the service ``keys`` makes, by the same script, as often as it starts."""
    (tmp_path / "bin").mkdir()
    requery = tmp_path / "bin/requery"
    requery.write_text(f'#!/bin/sh\nexec {sys.executable} -m service.cli "$@"\n')
    requery.chmod(0o755)
    path = f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}"
    for folder in ("hashes", "keys", "metrics"):
        (tmp_path / folder).mkdir()
    for _ in range(2):
        subprocess.run(
            ["sh", FOLDER / "make-keys.sh", *(tmp_path / n for n in ("hashes", "keys", "metrics"))],
            env=os.environ | {"PATH": path},
            cwd=ROOT,
            check=True,
            capture_output=True,
            timeout=PATIENCE_S,
        )
    return tmp_path


@pytest.mark.timeout(4 * PATIENCE_S)
class TestKeys:
    def test_each_is_made_once(self, keys: Path) -> None:
        made = check_keys_file(keys / "hashes/keys.yaml")
        assert {k.name: set(k.scopes) for k in made} == {
            "backend": {"rewrite"}, "ops": {"admin"}, "prometheus": {"metrics"}
        }  # fmt: skip
        assert len(made) == 3
        assert {p.name for p in (keys / "keys").iterdir()} == {"backend", "ops"}
        assert {p.name for p in (keys / "hashes").iterdir()} == {"keys.yaml"}

    def test_it_fails_where_none_can_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "requery").write_text("#!/bin/sh\nexit 1\n")
        (tmp_path / "requery").chmod(0o755)
        done = subprocess.run(
            ["sh", FOLDER / "make-keys.sh", tmp_path, tmp_path, tmp_path],
            env={"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"},
            capture_output=True,
            check=False,
        )
        assert done.returncode != 0
        assert not (tmp_path / "keys.yaml").exists()


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    (tmp_path / "redis").mkdir()
    server = RedisServer(tmp_path / "redis")
    server.start()
    yield server
    server.stop()


@pytest.mark.integration
@pytest.mark.timeout(8 * PATIENCE_S)
def test_with_its_settings_answers_come_from_the_engine_then_memory_then_redis(
    services: dict[str, Any], keys: Path, redis_server: RedisServer
) -> None:
    url = services["requery"]["environment"]["REQUERY_REDIS_URL"]
    assert httpx.URL(url).host in services
    here = {
        url: redis_server.url,
        "/etc/requery/keys.yaml": str(keys / "hashes/keys.yaml"),
        # No port of a test is open to others; it is what an address of a container becomes.
        "0.0.0.0": "127.0.0.1",
    }
    variables = {
        name.removeprefix("REQUERY_").lower(): here.get(value, value)
        for name, value in {**image_environment(), **services["requery"]["environment"]}.items()
        if name.startswith("REQUERY_") and name not in ("REQUERY_CACHE_DIR", "REQUERY_PORT")
    }
    backend = _bearer(keys / "keys/backend")
    with ScriptedProcess(**variables) as first:
        sources = [_ask(first.url, backend), _ask(first.url, backend)]
        assert httpx.post(f"{first.url}/rewrite", json={"query": "a"}).status_code == 401
        scraped = httpx.get(
            f"{first.url}/metrics", headers=_bearer(keys / "metrics/requery_metrics_key")
        )
        assert scraped.status_code == 200
        refused = httpx.get(f"{first.url}/metrics", headers=backend)
        assert refused.status_code == 403
        # What the service writes to Redis it writes after the answer.
        asyncio.run(until(lambda: any(redis_server.client().scan_iter(f"requery:{SCHEMA}:*"))))
    with ScriptedProcess(**variables) as second:
        sources.append(_ask(second.url, backend))
    assert sources == ["engine", "memory", "redis"]


def _bearer(file: Path) -> dict[str, str]:
    return {"authorization": f"Bearer {file.read_text().strip()}"}


def _ask(url: str, headers: dict[str, str]) -> str:
    answer = httpx.post(
        f"{url}/rewrite",
        json={"query": "steele stake", "deadline_ms": 30_000},
        headers=headers,
        timeout=PATIENCE_S,
    ).json()
    assert answer["rewrites"][0]["text"] == "steel stake"
    return str(answer["source"])
