"""Starts the components in order, and stops them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from service.app.components import Components
from service.errors import LoadFailed
from service.versions.state import State
from service.versions.version import ModelVersion

_AGAIN_S = 2.0
"""Between two cancellations of a task that goes on after the first."""


@asynccontextmanager
async def lifespan(
    components: Components, on_load_failure: Callable[[Exception], None] | None = None
) -> AsyncIterator[None]:
    """Run the components for a block.

    Documents come first because they say which versions to load; the reconciler then loads them in
    the background, the default first. An unreachable Redis delays nothing: the service runs without
    it until it answers.

    Args:
        components: all components, not started yet.
        on_load_failure: called if the default version cannot be loaded and none has been ready.
    """
    components.loader.on_change(_first_load(components, on_load_failure))
    connecting = [] if components.redis is None else [components.redis.start()]
    await asyncio.gather(*connecting, components.documents.refresh())
    components.purger.begin()
    components.exposures.start()
    components.shadow.start()
    tasks = [
        asyncio.create_task(work, name=name)
        for name, work in (
            ("documents", components.document_store.run()),
            ("overrides", components.overrides.run()),
            ("roster", components.reconciler.run()),
            ("supervisor", components.supervisor.run()),
        )
    ]
    try:
        yield
    finally:
        while any(not task.done() for task in tasks):
            for task in tasks:
                task.cancel()
            # Repeatedly, because redis-py may swallow a cancellation.
            await asyncio.wait(tasks, timeout=_AGAIN_S)
        await components.shadow.close()
        await components.flights.close()
        await components.loader.close()
        await components.exposures.close()
        await components.cache.close()
        await components.document_store.close()


def _first_load(
    components: Components, on_load_failure: Callable[[Exception], None] | None
) -> Callable[[ModelVersion], None]:
    """Reports a failure of the default version as long as no version has been ready.

    Later the reconciler tries again while another version serves.
    """
    served = False

    def changed(version: ModelVersion) -> None:
        nonlocal served
        served = served or version.state is State.READY
        failed = version.state is State.FAILED and version is components.versions.default
        if failed and not served and on_load_failure is not None:
            failure = version.failure
            on_load_failure(failure if isinstance(failure, Exception) else LoadFailed("given up"))

    return changed
