"""No key, password or query gets out by a log line, an error, a metric or the audit trail."""

from __future__ import annotations

import base64
import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from service.app.components import Components, RuntimeDependencies, build_components
from service.config.settings import Settings
from service.security.api_keys import digest_of, entry, new_key
from service.telemetry.logging import configure_logging
from service.versions.version import ModelVersion
from tests.support.calling import calling
from tests.support.engine import ScriptedEngine
from tests.support.service import Serve, Service
from tests.support.versions import Engines, make_manifest

ADMIN, FILE, WRONG, PASSWORD = "an admin key of ours", new_key(), new_key(), "a-redis-password"
QUERY = "zanzibar quilting lantern"
"""Words that nothing else here says."""


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the lines of the test's own client."""
    for name in ("httpx", "httpcore"):
        monkeypatch.setattr(logging.getLogger(name), "disabled", True)


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    path = tmp_path / "keys.yaml"
    path.write_text(entry("ops", FILE, ["admin"]))
    return path


def forms(secret: str) -> set[str]:
    """A secret as it is and in the encodings that somebody could undo."""
    raw = secret.encode()
    return {
        secret, raw.hex(), base64.b64encode(raw).decode(), base64.urlsafe_b64encode(raw).decode(),
        secret.removeprefix("rq_"),
    }  # fmt: skip


async def everything_with_keys(service: Service) -> list[httpx.Response]:
    """Calls that carry keys in every place that somebody may put one."""
    asked: list[httpx.Response] = []
    for key in (ADMIN, FILE, WRONG):
        for headers in (
            {"authorization": f"Bearer {key}"},
            {"authorization": f"Basic {key}"},
            {"authorization": key},
            {"authorization": f"Bearer {key} {key}"},
            {"x-api-key": key, "cookie": f"key={key}"},
        ):
            for method, path, body in (
                ("GET", "/audit", None),
                ("GET", "/versions", None),
                ("POST", "/rewrite", {"query": "stake"}),
                ("POST", "/cache/purge", {"query": "stake"}),
                ("POST", "/versions/nobody/load", None),
                ("PUT", "/overrides/x", {"kind": "block_query", "query": "a", "reason": "b"}),
                ("PUT", "/routing", {"salt": "x"}),
                ("GET", "/nothing", None),
            ):
                asked.append(await service.client.request(method, path, json=body, headers=headers))
        asked.append(await service.client.get(f"/audit?key={key}&limit={key}"))
        asked.append(await service.client.post(f"/versions/test-1/load?wait={key}"))
    return asked


async def test_no_key_and_no_password_gets_out(
    serve: Serve, keys_file: Path, restored: None, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("debug")
    service = await serve(
        admin_key=ADMIN,
        api_keys_file=keys_file,
        # Nothing listens there: the log has much to say about it.
        redis_url=f"redis://user:{PASSWORD}@127.0.0.1:1/0",
        exposures="redis",
        log_query_salt="a salt of ours",
    )
    answers = await everything_with_keys(service)
    assert {r.status_code for r in answers} >= {200, 401, 403, 404}
    # From elsewhere: too many wrong keys came from there.
    async with calling(service.app, "10.0.0.1", ADMIN) as operator:
        audit, metrics = await operator.get("/audit"), await operator.get("/metrics")
    assert audit.status_code == 503  # there is no Redis
    assert metrics.status_code == 200
    out, err = capsys.readouterr()
    assert '"event":"request"' in out
    assert "redis" in out
    shown = [out, err, audit.text, metrics.text]
    for response in answers:
        # What was asked for is not the service's to keep back: its address is.
        shown += [response.text, str(response.headers)]
    for secret in (ADMIN, FILE, WRONG, PASSWORD, "a salt of ours"):
        for form in forms(secret):
            assert not [text for text in shown if form in text], form
    # A hash would do to find out whether a guess is right.
    assert digest_of(FILE.encode()).hex() not in "".join(shown)


@pytest.mark.parametrize(
    "url",
    [
        f"redis://user:{PASSWORD}@[/0", f"redis://user:{PASSWORD}@host:port/0",
        f"http://user:{PASSWORD}@host/0", f"redis://user:{PASSWORD}@host/zero",
        f"redis://host/0?password={PASSWORD}&nosuch={PASSWORD}", PASSWORD,
        f"redis+sentinel://user:{PASSWORD}@host", f"redis://user:{PASSWORD}#x@host",
        f"redis+cluster://host/0?ssl_cert_reqs={PASSWORD}",
    ],
)  # fmt: skip
async def test_a_redis_url_that_cannot_be_used_is_refused_without_its_password(
    serve: Serve, url: str
) -> None:
    with pytest.raises(ValueError, match="REQUERY_REDIS_URL") as caught:
        await serve(redis_url=url)
    assert PASSWORD not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"HOST": "0.0.0.0"}, "REQUERY_SERVE_WITHOUT_KEYS"),
        ({"API_KEYS_FILE": "/nonexistent/keys.yaml"}, "/nonexistent/keys.yaml"),
        ({"REDIS_URL": f"http://user:{PASSWORD}@x"}, "REQUERY_REDIS_URL"),
    ],
)
def test_a_start_without_the_keys_that_it_needs_is_one_line_and_exit_2(
    options: dict[str, str], said: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.serve_scripted", "--port", "0"],
        cwd=Path(__file__).parents[4],
        env=os.environ | {f"REQUERY_{name}": value for name, value in options.items()},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    (line,) = done.stderr.splitlines()
    assert line.startswith("requery: ")
    assert said in line
    assert PASSWORD[:15] not in line + done.stdout


def test_a_setting_that_cannot_be_is_refused_without_its_value() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "serve"],
        cwd=Path(__file__).parents[4],
        env=os.environ | {"REQUERY_ADMIN_KEY": PASSWORD[:15]},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("requery: REQUERY_ADMIN_KEY: ")
    assert PASSWORD[:15] not in done.stderr + done.stdout


def test_settings_do_not_show_secrets(keys_file: Path) -> None:
    settings = Settings(
        admin_key=ADMIN, redis_url=f"redis://u:{PASSWORD}@h/0", log_query_salt="a salt of ours"
    )
    for text in (repr(settings), str(settings), settings.model_dump_json()):
        for secret in (ADMIN, PASSWORD, "a salt of ours"):
            assert secret not in text


async def test_the_application_keeps_no_more_of_the_admin_key_than_its_hash(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Components] = []

    def watched(settings: Settings, dependencies: RuntimeDependencies) -> Components:
        made.append(build_components(settings, dependencies))
        return made[-1]

    monkeypatch.setattr("service.app.factory.build_components", watched)
    service = await serve(admin_key=ADMIN)
    (parts,) = made
    assert parts.settings.admin_key is None
    headers = {"authorization": f"Bearer {ADMIN}"}
    assert (await service.client.get("/audit", headers=headers)).status_code == 200
    assert (await service.client.get("/audit")).status_code == 401


@pytest.mark.parametrize("mode", ["hash", "off", "plain"])
async def test_queries_are_logged_only_as_configured(
    serve: Serve, restored: None, capsys: pytest.CaptureFixture[str], mode: str
) -> None:
    configure_logging("debug")
    engines = Engines()
    engines.give("other-1", ScriptedEngine(fault=RuntimeError("the candidate broke")))
    service = await serve(
        more_versions=(ModelVersion(make_manifest("other-1")),), more_engines=engines,
        log_queries=mode, exposures="log",
    )  # fmt: skip
    post = service.client.post
    assert (await post("/versions/other-1/load?wait=true")).status_code == 200
    plan = {
        "default": "test-1", "salt": "s", "weights": {"test-1": 1.0},
        "shadow": {"version": "other-1", "share": 1.0},
    }  # fmt: skip
    put = await service.client.put("/routing", json=plan, headers={"if-match": "*"})
    assert put.status_code == 200
    await service.rewrite(QUERY, unit_id="u-1", explain=True)
    await service.rewrite(QUERY)  # out of memory
    await post("/rewrite/batch", json={"queries": [QUERY, {"query": QUERY, "unit_id": "u"}, "", 7]})
    await post("/relevance", json={"pairs": [{"query": QUERY, "rewrite": QUERY}]})
    await post("/rewrite", json={"query": QUERY, "model_version": "nobody"})
    await post("/rewrite", json={"query": QUERY * 20})
    await post("/rewrite", json={"query": QUERY, QUERY: 1})
    await post("/rewrite", content=f'{{"query": "{QUERY}', headers={"content-type": "text/json"})
    await post("/rewrite", content=QUERY, headers={"content-type": "application/json"})
    await post(f"/rewrite?query={QUERY}", json={"query": QUERY})
    await post("/cache/purge", json={"query": QUERY})
    await post("/rewrite", json={"query": QUERY, "model_version": "other-1"})  # it breaks
    service.engine.fault = RuntimeError("the engine broke")
    await service.rewrite(QUERY + " two")
    await service.idle()

    async def recorded() -> bool:
        return await service.metric("requery_exposures_total", result="written") >= 2

    await service.until(recorded)
    out, err = capsys.readouterr()
    events = [json.loads(line) for line in out.splitlines()]
    assert {"request", "exposure", "audit", "generation_failed"} <= {e["event"] for e in events}
    assert any("exception" in event for event in events)
    shown = [event for event in events if "zanzibar" in json.dumps(event).lower()]
    assert bool(shown) == (mode == "plain")
    assert any("query_hash" in event for event in events) == (mode == "hash")
    # Only where it belongs: in the field of that name.
    assert not [e for e in shown if "zanzibar" in json.dumps(e | {"query": ""}).lower()]
    assert "zanzibar" not in err
    audit = (await service.client.get("/audit")).text
    metrics = (await service.client.get("/metrics")).text
    assert "zanzibar" not in (audit + metrics).lower()
