"""Versions and engines of replicas of Ray Serve."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import import_module

from model_store.store import open_store
from service.app.components import RuntimeDependencies
from service.config.settings import Settings
from service.engine.loading import detect_device
from service.versions.from_store import arriving, engine_factory, known_versions, version_finder

Provider = Callable[[Settings], Awaitable[RuntimeDependencies]]

FROM_STORE = "service.ray.dependencies:from_store"


async def from_store(settings: Settings) -> RuntimeDependencies:
    """The versions of the model store, on vLLM.

    Unlike :func:`service.server.command.from_store`, it has no memory budget, because each engine
    has a replica of its own whose resources Ray assigns. Set ``REQUERY_DEVICE=cuda`` if the engines
    have GPUs and the ingress has none.

    Raises:
        ModelStoreError: the store cannot be read, or the default version cannot be used.
        LoadFailed: the store gave no answer.
    """
    store = open_store(settings.sources(), settings.cache_dir)
    versions = await arriving(
        lambda: known_versions(store, settings),
        wait_s=settings.store_wait_s if settings.sources() else 0.0,
    )
    device = detect_device() if settings.device == "auto" else settings.device
    return RuntimeDependencies(
        versions=versions,
        engines=engine_factory(store, settings),
        find=version_finder(store, settings),
        gpu=device == "cuda",
    )


def provider(path: str) -> Provider:
    """The function at ``package.module:name``.

    Raises:
        ValueError: there is none.
    """
    module, _, name = path.partition(":")
    try:
        found: Provider = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"supply: {path!r} names no function ({error})") from error
    return found
