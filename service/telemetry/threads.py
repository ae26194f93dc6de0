"""Blocking work in daemon threads, which do not delay the end of the process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

_Result = TypeVar("_Result")


async def in_daemon_thread(
    work: Callable[[], _Result],
    *,
    name: str = "work",
    discard: Callable[[_Result], None] = lambda _result: None,
) -> _Result:
    """The result of ``work`` in a daemon thread; the event loop's own threads delay its end.

    Args:
        work: goes on to its end if the caller is cancelled.
        name: of the thread.
        discard: called in the event loop with a result that the cancelled caller does not get.

    Raises:
        BaseException: whatever ``work`` raises.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    results: list[_Result] = []

    def settle(error: BaseException | None) -> None:
        if done.cancelled():
            if results:
                discard(results.pop())
        elif error is not None:
            done.set_exception(error)
        else:
            done.set_result(None)

    def run() -> None:
        fault = None
        try:
            results.append(work())
        except BaseException as error:  # noqa: BLE001 - raised again in the caller
            fault = error
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(settle, fault)

    threading.Thread(target=run, name=name, daemon=True).start()
    await done
    # Nothing else refers to the result, not even the traceback of an error that somebody keeps.
    return results.pop()
