"""Starting the parts in order, and stopping them in the other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from service.app.components import Components
from service.errors import LoadFailed
from service.versions.state import State
from service.versions.version import ModelVersion

_AGAIN_S = 2.0
"""Between two cancellations of a task that has not heard the first."""


@asynccontextmanager
async def running(
    parts: Components, on_load_failure: Callable[[Exception], None] | None = None
) -> AsyncIterator[None]:
    """The parts at work.

    Documents come first because they say which versions to load; the reconciler then loads them in
    the background, the default first. An unreachable Redis delays nothing: the service runs without
    it until it answers.

    Args:
        parts: all parts, not started yet.
        on_load_failure: told when the default version could not be loaded and none has served yet.
    """
    parts.loader.on_change(_first_load(parts, on_load_failure))
    greeting = [] if parts.redis is None else [parts.redis.start()]
    await asyncio.gather(*greeting, parts.documents.refresh())
    parts.purger.begin()
    parts.exposures.start()
    parts.shadow.start()
    following = [
        asyncio.create_task(work, name=name)
        for name, work in (
            ("documents", parts.document_store.run()),
            ("overrides", parts.overrides.run()),
            ("roster", parts.reconciler.run()),
            ("supervisor", parts.supervisor.run()),
        )
    ]
    try:
        yield
    finally:
        while any(not task.done() for task in following):
            for task in following:
                task.cancel()
            # Again if need be: redis-py may swallow a cancellation.
            await asyncio.wait(following, timeout=_AGAIN_S)
        await parts.shadow.close()
        await parts.flights.close()
        await parts.loader.close()
        await parts.exposures.close()
        await parts.cache.close()
        await parts.document_store.close()


def _first_load(
    parts: Components, on_load_failure: Callable[[Exception], None] | None
) -> Callable[[ModelVersion], None]:
    """Tells of the default's failure as long as nothing has ever been ready here.

    Later the reconciler tries again while another version serves.
    """
    served = False

    def told(version: ModelVersion) -> None:
        nonlocal served
        served = served or version.state is State.READY
        failed = version.state is State.FAILED and version is parts.versions.default
        if failed and not served and on_load_failure is not None:
            failure = version.failure
            on_load_failure(failure if isinstance(failure, Exception) else LoadFailed("given up"))

    return told
