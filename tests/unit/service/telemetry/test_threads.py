from __future__ import annotations

import asyncio
import threading

import pytest

from service.telemetry.threads import in_daemon_thread


async def test_the_result_comes_from_a_daemon_thread() -> None:
    thread = await in_daemon_thread(threading.current_thread, name="mine")
    assert (thread.daemon, thread.name) == (True, "mine")


async def test_an_error_is_raised_in_the_caller() -> None:
    with pytest.raises(ZeroDivisionError):
        await in_daemon_thread(lambda: 1 / 0)


async def test_a_result_that_comes_too_late_is_discarded() -> None:
    may_end, discarded = threading.Event(), asyncio.Queue[bool]()
    task = asyncio.create_task(in_daemon_thread(may_end.wait, discard=discarded.put_nowait))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    may_end.set()
    assert await discarded.get()
