"""``requery serve``: one process, one event loop, one line on standard error when it cannot start.

Order: options, model store, port, then the application; the slow load of the model comes last, in
the background, while ``/livez`` and ``/readyz`` already answer.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import Annotated, Any, NoReturn

import structlog
import typer
import uvicorn
from pydantic import ValidationError

from model_store.errors import ModelStoreError
from model_store.store import open_store
from service.app import create_app
from service.catalogue import engine_factory, known_versions, memory_budget, version_finder
from service.engine.loading import detect_device
from service.errors import RequeryError
from service.logging import configure_logging
from service.overrides.file import OverridesFileInvalid
from service.parts import Supplies
from service.settings import Settings

_log = structlog.get_logger(component="serve")

_BACKLOG = 2048
_GRACE_S = 10
"""How long requests in flight may take to finish once the process is told to stop."""
_FAILED = 1
_WRONG_OPTIONS = 2


def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on. [REQUERY_HOST; 127.0.0.1]")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port. [REQUERY_PORT; 8000]")] = None,
    version_name: Annotated[
        str | None, typer.Option(help="Model version to serve. [REQUERY_DEFAULT_VERSION; sft-1]")
    ] = None,
    log_level: Annotated[
        str | None,
        typer.Option(help="debug, info, warning or error. [REQUERY_LOG_LEVEL; info]"),
    ] = None,
) -> None:
    """Answer rewrite requests over HTTP. All other options are REQUERY_* settings."""
    given = {
        "host": host,
        "port": port,
        "default_version": version_name,
        "log_level": log_level,
    }
    settings = _settings({name: value for name, value in given.items() if value is not None})
    configure_logging(settings.log_level)
    run(settings, from_store)


def from_store(settings: Settings) -> Supplies:
    """The versions of the model store, on vLLM.

    Raises:
        ModelStoreError: the store cannot be read, or the default version cannot be used.
    """
    device = detect_device() if settings.device == "auto" else settings.device
    store = open_store(settings.sources(), settings.cache_dir)
    return Supplies(
        versions=known_versions(store, settings),
        engines=engine_factory(store, settings),
        memory=memory_budget(settings),
        find=version_finder(store, settings),
        gpu=device == "cuda",
    )


def run(settings: Settings, supply: Callable[[Settings], Supplies]) -> None:
    """Serve until told to stop.

    Args:
        settings: all options.
        supply: gives the versions, and what makes them run.

    Raises:
        SystemExit: it could not start; one line on standard error says why.
    """
    try:
        supplies = supply(settings)
    except (ModelStoreError, OSError) as error:
        _die(f"{error} (see 'requery models list'; choose one with --version-name)")
    listener = _listen(settings.host, settings.port)
    failures: list[Exception] = []

    def give_up(error: Exception) -> None:
        failures.append(error)
        server.should_exit = True

    try:
        app = create_app(settings, supplies, on_load_failure=give_up)
    except (OverridesFileInvalid, ValueError) as error:
        _die(str(error), _WRONG_OPTIONS)
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            loop="uvloop",
            http="httptools",
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=_GRACE_S,
        )
    )
    address = listener.getsockname()
    device = "cuda" if supplies.gpu else "cpu"
    _log.info("listening", host=address[0], port=address[1], device=device)
    # uvicorn raises the signal again once it has shut down in order: that is a clean end.
    signal.signal(signal.SIGTERM, _leave)
    try:
        server.run(sockets=[listener])
    except KeyboardInterrupt:
        return
    if failures:
        _die(_reason(failures[0], settings.default_version))
    if not server.started:
        _die("the application could not start; the log above says why")


def _settings(given: dict[str, Any]) -> Settings:
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        _die(f"REQUERY_{name}: {first['msg']}", _WRONG_OPTIONS)


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, so that a taken port shows before the model is loaded."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        _die(f"cannot listen on {host}: {error.strerror}; choose an address with --host")
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            _die(
                f"port {port} on {host} is taken; stop what listens there, "
                "or choose another with --port (or REQUERY_PORT)"
            )
        _die(f"cannot listen on {host} port {port}: {error.strerror}; try another --host or --port")
    return listener


def _reason(error: Exception, version: str) -> str:
    if isinstance(error, ModelStoreError | RequeryError):
        return f"version {version} cannot be served: {error}"
    return f"version {version} cannot be served: {type(error).__name__}: {error} (see the log)"


def _die(message: str, code: int = _FAILED) -> NoReturn:
    """End with one line on standard error."""
    line = " ".join(message.split())
    sys.stderr.write(f"requery: {line}{os.linesep}")
    raise SystemExit(code)


def _leave(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)
