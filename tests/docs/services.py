"""The services that documented commands run against: the real server on scripted engines.

A block names one with ``<!-- service: NAME -->``; without, it is ``ready``. The blocks of a page
that name the same one share it, in the order of the page.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import httpx
from fastapi import FastAPI

from service.app.components import RuntimeDependencies
from service.app.factory import create_app
from service.config.settings import Settings
from service.security.api_keys import entry, new_key
from service.versions.version import ModelVersion
from tests.docs.shell import environment
from tests.support.engine import Script, ScriptedEngine
from tests.support.http_server import Listening, listening
from tests.support.versions import Engines, make_manifest
from tests.support.waiting import until

SCRIPT: dict[str, Script] = {
    "steele stake": (("steel stake", 0.9978), ("metal stake", 0.9123), ("post", 0.0312)),
    "patio furnature": (("patio furniture", 0.9967),),
    "celling light": (("ceiling light", 0.9999), ("ceiling fixture", 0.9568)),
    "lawnmower": (("lawn mower blades", 0.9396), ("grass mower", 0.8788)),
    "outdoor rug": (("outdoor rug for patio", 0.9914), ("vinyl rug", 0.9047)),
    "garden hoze": (("garden hose", 0.915),),
    "no rewrites please": (("something else", 0.0213),),
}
"""What the engine of each version writes; of other queries nothing."""
VERSIONS = ("general-1", "grpo-1", "old-1")
_PATIENCE_S = 60.0

_CURL = """\
#!/bin/bash -e
# Keeps what the real one sent and got, and prints what it would have printed.
n=$CURL_LOG/$(printf %04d "$(ls "$CURL_LOG" | wc -l)"); mkdir "$n"
given=(); shown=()
for one in "$@"; do
  if [ "$one" = -i ]; then shown=("$n/headers"); else given+=("$one"); fi
done
said='%{method} %{url_effective} %{http_code}'
"$CURL" "${given[@]}" -D "$n/headers" -o "$n/body" -w "$said" > "$n/what"
touch "$n/body"
cat "${shown[@]}" "$n/body"
"""


@cache
def document() -> dict[str, Any]:
    """The OpenAPI document of the service."""
    app = create_app(
        Settings(default_version="general-1"),
        RuntimeDependencies(versions=_versions(), engines=Engines()),
    )
    found: dict[str, Any] = app.openapi()
    return found


def _versions() -> list[ModelVersion]:
    # One rewrite unless asked for more, which keeps the pages short.
    return [ModelVersion(make_manifest(name, filter={"max_rewrites": 1})) for name in VERSIONS]


@dataclass
class Exchange:
    """One call of curl."""

    method: str
    url: str
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def content(self) -> Any:
        return json.loads(self.body)

    def __str__(self) -> str:
        return f"{self.method} {self.url} {self.status} {self.body[:300]!r}"


@dataclass
class Running:
    """A service, and variables of commands that run against it."""

    service: Listening
    folder: Path
    variables: dict[str, str] = field(default_factory=dict)

    async def run(self, script: str) -> tuple[str, list[Exchange]]:
        """What a script prints, and what its calls of curl got.

        Raises:
            AssertionError: it failed.
        """
        log = self.folder / "log"
        log.mkdir(exist_ok=True)
        before = len(list(log.iterdir()))
        process = await asyncio.create_subprocess_exec(
            "bash",
            "-euo",
            "pipefail",
            "-c",
            script.replace("localhost:8000", f"localhost:{self.service.port}"),
            cwd=self.folder,
            env=self._environment(log),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await process.communicate()
        assert process.returncode == 0, f"{script}\nfailed: {out.decode()} {err.decode()}"
        return out.decode(), [_exchange(one) for one in sorted(log.iterdir())[before:]]

    def _environment(self, log: Path) -> dict[str, str]:
        bin_ = self.folder / "bin"
        given = environment(self.service.port, CURL_LOG=str(log), **self.variables)
        if not bin_.exists():
            bin_.mkdir()
            (bin_ / "curl").write_text(_CURL)
            (bin_ / "curl").chmod(0o755)
        given["CURL"] = _which("curl", given["PATH"])
        given["PATH"] = os.pathsep.join([str(bin_), given["PATH"]])
        return given


def _which(program: str, path: str) -> str:
    import shutil

    found = shutil.which(program, path=path)
    assert found is not None, f"{program} is needed to run what the documentation says"
    return found


def _exchange(folder: Path) -> Exchange:
    method, url, status = (folder / "what").read_text().split()
    head = (folder / "headers").read_text().strip().splitlines()[1:]
    headers = {n.strip().lower(): v.strip() for n, _, v in (line.partition(":") for line in head)}
    return Exchange(method, url, int(status), headers, (folder / "body").read_bytes())


def _engine(**options: Any) -> ScriptedEngine:
    tags = {("steele stake", "steel stake"): 0.9978, ("steele stake", "beef steak"): 0.0117}
    return ScriptedEngine(
        SCRIPT, default=(), tag=lambda query, rewrite: tags.get((query, rewrite), 0.5), **options
    )


@asynccontextmanager
async def _serve(
    folder: Path, engine: ScriptedEngine | None = None, *, ready: bool = True, **options: Any
) -> AsyncIterator[Running]:
    engine = engine or _engine()

    async def make(settings: Settings) -> FastAPI:
        engines = Engines(general_1=engine, grpo_1=_engine(), old_1=_engine())
        return create_app(settings, RuntimeDependencies(versions=_versions(), engines=engines))

    # No example may depend on how fast the machine is.
    patient = {"engine_stall_s": 3600.0, "default_deadline_ms": 30_000}
    options = {"default_version": "general-1"} | patient | options
    async with listening(engine, make=make, ready=ready, **options) as service:
        yield Running(service, folder)


@asynccontextmanager
async def _ready(folder: Path) -> AsyncIterator[Running]:
    """The default version is loaded; nobody needs a key."""
    async with _serve(folder) as running:
        yield running


@asynccontextmanager
async def _loaded(folder: Path) -> AsyncIterator[Running]:
    """All versions are loaded, and the routing has been changed three times."""
    async with _serve(folder) as running, _caller(running) as caller:
        for name in VERSIONS[1:]:
            assert (await caller.post(f"/versions/{name}/load?wait=true")).status_code == 200
        for revision in range(3):
            plan = {"default": "general-1", "weights": {}, "salt": f"test {revision}"}
            answer = await caller.put("/routing", json=plan, headers={"if-match": f'"{revision}"'})
            assert answer.status_code == 200
        yield running


@asynccontextmanager
async def _loading(folder: Path) -> AsyncIterator[Running]:
    """The engine has not started yet."""
    engine = _engine()
    engine.may_start.clear()
    async with _serve(folder, engine, ready=False) as running:
        caller = await running.service.connect()
        caller.close()
        yield running
        engine.may_start.set()


def _slow(candidates: int) -> Callable[[Path], Any]:
    """The engine has so many candidates ready, and no more for as long as it takes."""

    @asynccontextmanager
    async def serve(folder: Path) -> AsyncIterator[Running]:
        engine = _engine(held=True, held_from=candidates)
        async with _serve(folder, engine) as running:
            yield running
            engine.release()

    return serve


@asynccontextmanager
async def _busy(folder: Path) -> AsyncIterator[Running]:
    """The engine has as much to do as it may have."""
    engine = _engine(held=True, held_from=0)
    async with (
        _serve(folder, engine, admission_max_candidates=4, admission_max_waiting=0) as running,
        _caller(running) as caller,
    ):
        asked = [
            asyncio.create_task(caller.post("/rewrite", json={"query": query}))
            for query in ("outdoor rug", "garden hoze")
        ]
        await until(lambda: len(engine.generated) > 0)
        yield running
        engine.release()
        await asyncio.gather(*asked)


@asynccontextmanager
async def _keys(folder: Path) -> AsyncIterator[Running]:
    """Callers need keys: REQUERY_KEY may ask for rewrites, METRICS_KEY scrape."""
    key, other, admin = new_key(), new_key(), new_key()
    file = folder / "keys.yaml"
    file.write_text(
        entry("backend", key, ["rewrite"])
        + entry("prometheus", other, ["metrics"])
        + entry("ops", admin, ["admin"])
    )
    async with _serve(folder, api_keys_file=file) as running:
        running.variables = {"REQUERY_KEY": key, "METRICS_KEY": other, "ADMIN_KEY": admin}
        yield running


@asynccontextmanager
async def _admin_key(folder: Path) -> AsyncIterator[Running]:
    """Whoever changes anything needs the one admin key."""
    key = new_key()
    async with _serve(folder, admin_key=key) as running:
        running.variables = {"REQUERY_ADMIN_KEY": key}
        yield running


@asynccontextmanager
async def _limited(folder: Path) -> AsyncIterator[Running]:
    """Whoever asks has just asked as often as it may."""
    async with (
        _serve(folder, rate_limit_per_s=0.001, rate_limit_burst=1) as running,
        _caller(running) as caller,
    ):
        await caller.get("/versions")
        yield running


@asynccontextmanager
async def _caller(running: Running) -> AsyncIterator[httpx.AsyncClient]:
    url = f"http://127.0.0.1:{running.service.port}"
    async with httpx.AsyncClient(base_url=url, timeout=_PATIENCE_S, trust_env=False) as client:
        yield client


SERVICES: dict[str, Callable[[Path], Any]] = {
    "ready": _ready,
    "all versions": _loaded,
    "loading": _loading,
    "slow": _slow(1),
    "slower": _slow(0),
    "busy": _busy,
    "keys": _keys,
    "admin key": _admin_key,
    "limited": _limited,
}
