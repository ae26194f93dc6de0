"""``requery rewrite``: the rewrites of one query, from a running service or by itself."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import httpx
import typer

from service.config import calling

if TYPE_CHECKING:
    from service.config.settings import Settings

DEFAULT_URL = "http://127.0.0.1:8000"
_TIMEOUT = httpx.Timeout(60.0, connect=5.0)
_DEADLINE_MS = 30_000
"""A person waits longer than a search; the service cuts it to its own longest deadline."""


def rewrite(
    query: Annotated[str, typer.Argument(help="The query, such as 'garden hoze'.")],
    *,
    url: Annotated[
        str | None,
        typer.Option(
            help=f"The running service (default: {DEFAULT_URL}; if none answers there, the version "
            "is loaded here)."
        ),
    ] = None,
    key_file: Annotated[
        Path | None, typer.Option(help="File of the API key (default: REQUERY_API_KEY).")
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="Model version (default: the service's default).")
    ] = None,
    max_rewrites: Annotated[
        int | None, typer.Option(min=1, help="Most rewrites (default: the version's own).")
    ] = None,
    min_relevance: Annotated[
        float | None,
        typer.Option(min=0.0, max=1.0, help="Least relevance (default: the version's own)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of lines.")] = False,
) -> None:
    """Rewrite one query: each rewrite with its relevance, best first."""
    wishes: dict[str, Any] = {"max_rewrites": max_rewrites, "min_relevance": min_relevance}
    given = {name: value for name, value in wishes.items() if value is not None}
    try:
        key = calling.read_key(key_file)
        named = {} if version is None else {"model_version": version}
        body = {"query": query, "deadline_ms": _DEADLINE_MS, **given, **named}
        answer = asyncio.run(_asked(url or DEFAULT_URL, key, body, required=url is not None))
    except calling.CallInvalid as error:
        _die(str(error))
    if answer is None:
        answer = _by_itself(query, version, given)
    if as_json:
        typer.echo(json.dumps(answer, indent=2, ensure_ascii=False))
        return
    for one in answer["rewrites"]:
        typer.echo(f"{one['relevance']:.2f}  {one['text']}")
    if not answer["rewrites"]:
        typer.echo(f"no rewrites ({answer['status']})", err=True)


async def _asked(
    url: str, key: str | None, body: dict[str, Any], *, required: bool
) -> dict[str, Any] | None:
    """The answer of the service; ``None`` if nothing listens there and it is not required."""
    async with calling.client(url, key, _TIMEOUT) as client:
        try:
            response = await client.post("/rewrite", json=body)
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            if required:
                raise calling.CallInvalid(f"{client.base_url} does not answer ({error})") from None
            return None
        except httpx.TransportError as error:
            why = str(error) or type(error).__name__
            raise calling.CallInvalid(f"{client.base_url} does not answer ({why})") from None
        if told := calling.refused(response, key=key is not None):
            raise calling.CallInvalid(told)
        try:
            content = response.json()
            if response.status_code == httpx.codes.OK and isinstance(content["rewrites"], list):
                return dict(content)
            raise calling.CallInvalid(f"{client.base_url} refuses the query: {content['detail']}")
        except (LookupError, TypeError, ValueError) as error:
            if isinstance(error, calling.CallInvalid):
                raise
            raise calling.CallInvalid(
                f"{client.base_url} does not answer as Requery does; name the service with --url"
            ) from None


def _by_itself(query: str, version: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """The answer of an engine of our own, without cache and overrides."""
    from pydantic import ValidationError

    from model_store.errors import ModelStoreError
    from service.config.settings import Settings
    from service.errors import RequeryError
    from service.telemetry.logging import configure_logging

    configure_logging("error")
    try:
        settings = Settings()
        return asyncio.run(_generated(query, version or settings.default_version, given, settings))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        _die(f"REQUERY_{name}: {first['msg']}")
    except (ModelStoreError, RequeryError) as error:
        _die(str(error))
    except KeyboardInterrupt:
        _die("ended")


async def _generated(
    query: str, name: str, given: dict[str, Any], settings: Settings
) -> dict[str, Any]:
    from model_store.store import open_store
    from service.filtering.generation import Generation
    from service.versions import from_store

    store = open_store(settings.sources(), settings.cache_dir)
    version = await from_store.version_finder(store, settings)(name)
    text = version.normal_form(query)
    typer.echo(
        f"requery: no service answers at {DEFAULT_URL}; loading version {name} here, which takes "
        "up to a few minutes ('requery serve' keeps it loaded)",
        err=True,
    )
    engine = await from_store.engine_factory(store, settings)(
        version.manifest, lambda _prompt, _generated: None
    )
    try:
        await engine.start()
        generation = Generation.of([one async for one in engine.generate(text)])
    finally:
        await engine.close()
    selection = version.filter.select(generation.verdicts(text, version.filter), **given)
    return {
        "query": text,
        "rewrites": [
            {"text": one.text, "relevance": round(one.relevance or 0.0, 4)}
            for one in selection.accepted
        ],
        "status": "ok" if selection.accepted else "none",
        "source": "engine",
        "model_version": version.name,
    }


def _die(message: str) -> NoReturn:
    """Exit with one line on standard error."""
    sys.stderr.write(f"requery: {' '.join(message.split())}\n")
    raise SystemExit(1)
