"""``requery serve``: one process, one event loop, one line on standard error if it cannot start.

Order: options, port, model store, application; the model loads last, in the background. ``/livez``
and ``/readyz`` answer as soon as the port is open.
"""

from __future__ import annotations

import atexit
import errno
import gc
import os
import resource
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from dataclasses import replace
from types import FrameType
from typing import Annotated, Any, NoReturn

import structlog
import typer
import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from model_store.errors import ModelStoreError
from model_store.store import open_store
from service.app.components import RuntimeDependencies
from service.app.factory import create_app
from service.config.service_links import log_service_links
from service.config.settings import Settings
from service.engine.loading import detect_device
from service.errors import LoadFailed, RequeryError
from service.security.auth import require_keys
from service.server.connection import KEEP_ALIVE_S, HttpState, Limits, protocol
from service.server.graceful import Server
from service.server.startup import Front
from service.telemetry.logging import configure_logging
from service.telemetry.threads import in_daemon_thread
from service.versions.from_store import (
    arriving,
    engine_factory,
    known_versions,
    memory_budget,
    version_finder,
)

_log = structlog.get_logger(component="serve")

_BACKLOG = 2048
_COLLECT_AFTER = 10_000
"""Allocations between collections. A dozen concurrent requests exceed the default of 700, with all
their objects in use."""
_OTHER_DESCRIPTORS = 256
"""For engines, Redis and connections over the limit."""
_FAILED = 1
_WRONG_OPTIONS = 2
_UNFLUSHED = 120
"""The interpreter's exit status if it cannot flush its output."""


class _CannotServe(Exception):
    """The application cannot be created; the message is for the operator."""

    def __init__(self, message: str, code: int = _FAILED) -> None:
        super().__init__(message)
        self.code = code


def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on (default: REQUERY_HOST, 127.0.0.1).")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port (default: REQUERY_PORT, 8000).")] = None,
    version_name: Annotated[
        str | None,
        typer.Option(help="Model version to serve (default: REQUERY_DEFAULT_VERSION, general-1)."),
    ] = None,
    log_level: Annotated[
        str | None,
        typer.Option(help="debug, info, warning or error (default: REQUERY_LOG_LEVEL, info)."),
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
    log_service_links()
    run(settings, from_store)
    _leave_at_once()


async def from_store(settings: Settings) -> RuntimeDependencies:
    """The versions of the model store, on vLLM.

    Raises:
        ModelStoreError: the store cannot be read, or the default version cannot be used.
        LoadFailed: the store did not answer.
    """
    store = open_store(settings.sources(), settings.cache_dir)
    versions = await arriving(
        lambda: known_versions(store, settings),
        # Versions in the package need no wait.
        wait_s=settings.store_wait_s if settings.sources() else 0.0,
    )
    memory = await in_daemon_thread(lambda: memory_budget(settings, versions))
    return RuntimeDependencies(
        versions=versions,
        engines=engine_factory(store, settings),
        memory=memory,
        find=version_finder(store, settings, memory),
        gpu=_device(settings) == "cuda",
    )


def run(settings: Settings, supply: Callable[[Settings], Awaitable[RuntimeDependencies]]) -> None:
    """Serve until a signal.

    Args:
        settings: all options.
        supply: returns the versions and their dependencies.

    Raises:
        SystemExit: the start or the graceful end failed; one line on standard error says why.
    """
    gc.set_threshold(_COLLECT_AFTER)
    # Until the server runs: the first process of a container ignores signals otherwise.
    signal.signal(signal.SIGTERM, _leave)
    try:
        require_keys(settings)
    except ValueError as error:
        _die(str(error), _WRONG_OPTIONS)
    listener = _listen(settings.host, settings.port)
    serving = _Serving(settings, supply)
    address = listener.getsockname()
    _log.info("listening", host=address[0], port=address[1], device=_device(settings))
    try:
        serving.server.run(sockets=[listener])
    except KeyboardInterrupt:
        return
    if serving.failures:
        _die(*_reason(serving.failures[0], settings.default_version))
    if not serving.server.started:
        _die("the application could not start; the log above says why")


class _Serving:
    """The server, the creation of its application, and the failures."""

    def __init__(
        self, settings: Settings, supply: Callable[[Settings], Awaitable[RuntimeDependencies]]
    ) -> None:
        self._settings = settings
        self._supply = supply
        front = Front(
            self._make, on_failure=self._broken, cutting_off=lambda: self.server.cutting_off
        )
        self.server = _server(settings, front)
        self.failures: list[Exception] = []

    async def _make(self) -> FastAPI:
        try:
            dependencies = await self._supply(self._settings)
        except (ModelStoreError, LoadFailed, OSError) as error:
            raise _CannotServe(
                f"{error} (see 'requery models list'; choose one with --version-name)"
            ) from error
        try:
            return create_app(self._settings, dependencies, on_load_failure=self._not_loaded)
        except ValueError as error:
            raise _CannotServe(str(error), _WRONG_OPTIONS) from error

    def _not_loaded(self, error: Exception) -> None:
        # At a common signal, the engine core may end first.
        if not self.server.server_state.stopping:
            self._give_up(error)

    def _broken(self, error: Exception) -> None:
        if not isinstance(error, _CannotServe):
            _log.error("application_failed", exc_info=error)
            if self.server.server_state.stopping:
                error = _CannotServe("it has not stopped in order; the log above says why")
        self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self.failures.append(error)
        self.server.should_exit = True


def _server(settings: Settings, front: Front) -> Server:
    limits = Limits.of(settings)
    room = _allow_descriptors(limits.connections + _OTHER_DESCRIPTORS) - _OTHER_DESCRIPTORS
    if room < limits.connections:
        _log.warning("few_descriptors", max_connections=max(1, room), wanted=limits.connections)
        limits = replace(limits, connections=max(1, room))
    state = HttpState(limits)
    state.crowded = front.crowded
    config = uvicorn.Config(
        front,
        loop="uvloop",
        http=protocol(settings.http_protocol),
        timeout_keep_alive=KEEP_ALIVE_S,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
    )
    return Server(
        config, state, delay_s=settings.shutdown_delay_s, grace_s=settings.shutdown_grace_s
    )


def _allow_descriptors(wanted: int) -> int:
    """Raise the limit of open files to ``wanted`` if allowed; the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most


def _device(settings: Settings) -> str:
    return detect_device() if settings.device == "auto" else settings.device


def _settings(given: dict[str, Any]) -> Settings:
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = "_".join(str(part) for part in first["loc"]).upper()
        _die(f"REQUERY_{name}: {first['msg']}", _WRONG_OPTIONS)


def _listen(host: str, port: int) -> socket.socket:
    """A listening socket, so that a taken port fails before the model loads."""
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


def _reason(error: Exception, version: str) -> tuple[str, int]:
    """The message for ``error``, and the exit status."""
    if isinstance(error, _CannotServe):
        return str(error), error.code
    if isinstance(error, ModelStoreError | RequeryError):
        return f"version {version} cannot be served: {error}", _FAILED
    return f"version {version} cannot be served: {type(error).__name__}: {error} (see the log)", 1


def _die(message: str, code: int = _FAILED) -> NoReturn:
    """Exit with one line on standard error."""
    line = " ".join(message.split())
    sys.stderr.write(f"requery: {line}{os.linesep}")
    raise SystemExit(code)


def _leave_at_once() -> NoReturn:
    """Exit now that everything is closed.

    The interpreter would spend seconds of CPU time on tearing down vLLM and torch, which a busy
    machine may not have before it kills the process.
    """
    # Registered exit functions end child processes, among other things.
    atexit._run_exitfuncs()  # noqa: SLF001 - there is no other way to, short of the interpreter's own end
    code = 0
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):  # as the interpreter does: the pipe may be closed
            code = _UNFLUSHED
    os._exit(code)


def _leave(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)
