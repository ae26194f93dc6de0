"""From the model store to what the service runs on: versions, and the factory of their engines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import structlog

from model_store.errors import DigestMismatch, InvalidVersion, ModelStoreError
from model_store.errors import UnknownVersion as NotInStore
from model_store.files import mismatches
from model_store.manifest import Manifest
from model_store.materialise import materialise
from model_store.remote import RemoteUnreadable
from model_store.store import Store, StoredVersion, default_cache_dir
from service.config.settings import Settings
from service.engine.corrected import with_spelling
from service.engine.loading import EngineSettings, detect_device, kv_cache_bytes, load_engine
from service.engine.protocol import Engine
from service.errors import LoadFailed, UnknownVersion
from service.filtering.catalogue import TermIndex
from service.telemetry.threads import in_daemon_thread
from service.versions.memory_budget import MemoryBudget, memory_limit
from service.versions.memory_estimate import MemoryEstimate
from service.versions.version import EngineFactory, ModelVersion, OnTokens, public_reason

_log = structlog.get_logger(component="catalogue")

_Result = TypeVar("_Result")


_FIND_SECONDS = 60
"""Patience with a remote store."""
_AGAIN_S = 0.5
"""Between two looks for what is missing in the store."""
_TELL_S = 5.0
"""Between two log lines about it."""


def known_versions(store: Store, settings: Settings) -> list[ModelVersion]:
    """Every usable version of the store.

    One that cannot be used is left out with a warning, unless it is the default.

    Raises:
        UnknownVersion: the default version is not in the store.
        InvalidVersion: the default version cannot be used.
        ModelStoreError: the store cannot be read.
    """
    versions = [_version(store.get(settings.default_version), settings)]
    for name in store.names():
        if name == settings.default_version:
            continue
        try:
            versions.append(_version(store.get(name), settings))
        except InvalidVersion as error:
            _log.warning("version_left_out", version=name, reason=str(error))
    return versions


async def arriving(
    read: Callable[[], _Result],
    *,
    wait_s: float,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> _Result:
    """What ``read`` finds in the store, which may come late.

    A volume may be mounted after us, an object store start beside us, a version come last.

    Args:
        read: reads it; called outside the event loop, again and again while something is missing.
        wait_s: longest to wait for what is missing, in seconds.
        clock: monotonic seconds.
        sleep: waits so many seconds.

    Raises:
        ModelStoreError: it is still missing, or it is there and cannot be used.
        LoadFailed: the store gave no answer.
    """
    began = clock()
    told: float | None = None
    while True:
        try:
            async with asyncio.timeout(_FIND_SECONDS):
                return await in_daemon_thread(read)
        except TimeoutError:
            raise LoadFailed(
                f"the model store gave no answer within {_FIND_SECONDS} s; is it reachable?"
            ) from None
        except (NotInStore, RemoteUnreadable, OSError) as error:
            now = clock()
            if now - began >= wait_s:
                raise
            if told is None or now - told >= _TELL_S:
                told = now
                _log.warning(
                    "waiting_for_the_model_store",
                    reason=str(error),
                    seconds_left=round(wait_s - (now - began), 1),
                )
        await sleep(_AGAIN_S)


def engine_factory(store: Store, settings: Settings) -> EngineFactory:
    """Makes vLLM engines of stored versions; materialising happens outside the event loop."""
    engine_settings = _engine_settings(settings)

    async def make(manifest: Manifest, on_tokens: OnTokens) -> Engine:
        def prepare() -> Engine:
            stored = store.get(manifest.name)
            if stored.digest != manifest.digest:
                raise InvalidVersion(
                    f"version {manifest.name!r} has been changed in the store since this process "
                    "started; versions never change: give the new one a name of its own"
                )
            folder = materialise(stored, settings.cache_dir)
            engine = load_engine(manifest, folder, engine_settings, on_tokens=on_tokens)
            return with_spelling(engine, stored, settings.cache_dir or default_cache_dir())

        return await in_daemon_thread(prepare)

    return make


def version_finder(
    store: Store, settings: Settings, memory: MemoryBudget | None = None
) -> Callable[[str], Awaitable[ModelVersion]]:
    """Looks up a version that came into the store after the start, outside the event loop.

    Args:
        store: the model store.
        settings: all options.
        memory: estimates the version there too because that may take seconds.
    """

    async def find(name: str) -> ModelVersion:
        def read() -> ModelVersion:
            version = _version(store.get(name), settings)
            if memory is not None:
                memory.estimate(version.manifest)
            return version

        try:
            async with asyncio.timeout(_FIND_SECONDS):
                return await in_daemon_thread(read)
        except TimeoutError:
            raise LoadFailed(
                f"the model store did not give version {name[:64]!a} within {_FIND_SECONDS} s; "
                "try again later"
            ) from None
        except NotInStore:
            raise UnknownVersion(
                f"version {name[:64]!a} is not in the model store; put it there first "
                "('requery models add')"
            ) from None
        except ModelStoreError as error:
            raise LoadFailed(
                f"version {name[:64]!a} cannot be used: {public_reason(error)}"
            ) from error

    return find


def memory_budget(settings: Settings, versions: Iterable[ModelVersion] = ()) -> MemoryBudget:
    """The memory that all engines may take, with estimates of ``versions``; may take seconds."""
    engine_settings = _engine_settings(settings)
    device = detect_device() if settings.device == "auto" else settings.device
    estimate = MemoryEstimate(
        cache_dir=settings.cache_dir or default_cache_dir(),
        kv_cache_bytes=kv_cache_bytes(engine_settings, device),
        device=device,
        float32=device == "cpu" and settings.cpu_matrices == "float32",
    )
    for version in versions:
        estimate(version.manifest)
    return MemoryBudget(memory_limit(settings.engine_memory_bytes, device), estimate)


def _engine_settings(settings: Settings) -> EngineSettings:
    return EngineSettings(
        device=settings.device,
        kv_cache_bytes=settings.engine_kv_cache_bytes,
        max_sequences=settings.engine_max_sequences,
        threads=settings.engine_threads,
        compiled=settings.engine_compiled,
        extensions=settings.engine_extensions,
        log_level=settings.engine_log_level,
        matrices=settings.cpu_matrices,
        cache_dir=settings.cache_dir,
    )


def _version(stored: StoredVersion, settings: Settings) -> ModelVersion:
    """The version with the files that its filters need."""
    manifest, shop = stored.manifest, stored.manifest.catalogue
    brands_file = manifest.filter.brands_file
    needed = [name for name in (brands_file, shop.index_file if shop else None) if name]
    if not needed:
        return ModelVersion(manifest)
    folder = stored.source.folder(
        manifest.name, manifest, settings.cache_dir or default_cache_dir()
    )
    if wrong := mismatches(folder, {name: manifest.files[name] for name in needed}):
        raise DigestMismatch(f"version {manifest.name!r}: {wrong[0]}")
    lines: list[str] = []
    if brands_file is not None:
        lines = (folder / brands_file).read_text(encoding="utf-8").splitlines()
    return ModelVersion(
        manifest,
        brands=[brand for brand in lines if brand.strip()],
        catalogue=None if shop is None else TermIndex.load(folder / shop.index_file, shop.products),
    )
