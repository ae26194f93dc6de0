"""Nothing here waits for a time to pass: what should not end hangs on an event."""

from __future__ import annotations

import asyncio

import pytest

from service.redis.bounded import BoundedCommands


async def test_the_answer_or_the_fault_of_a_command_comes_through() -> None:
    commands = BoundedCommands(1)

    async def answer() -> int:
        return 5

    async def fail() -> int:
        raise KeyError("x")

    assert await commands.run(answer, 60) == 5
    with pytest.raises(KeyError):
        await commands.run(fail, 60)
    assert await commands.run(answer, 60) == 5


async def test_who_waited_long_enough_leaves_and_the_command_goes_on() -> None:
    commands = BoundedCommands(1)
    may_end, ended = asyncio.Event(), asyncio.Event()
    starts = 0

    async def slow() -> None:
        nonlocal starts
        starts += 1
        await may_end.wait()
        ended.set()

    with pytest.raises(TimeoutError):
        await commands.run(slow, 0.01)
    # Its place is taken until it ends: the next one is not even started.
    with pytest.raises(TimeoutError):
        await commands.run(slow, 0.01)
    assert starts == 1
    may_end.set()
    await commands.run(slow, 60)
    assert ended.is_set()
    assert starts == 2


async def test_a_budget_that_is_spent_starts_nothing_that_is_waited_for() -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    commands = BoundedCommands(1)
    with pytest.raises(TimeoutError):
        await commands.run(never, 0)
    await commands.close()


async def test_a_caller_who_is_cancelled_leaves_at_once_and_the_place_comes_free() -> None:
    commands = BoundedCommands(1)
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        begun.set()
        await may_end.wait()

    caller = asyncio.create_task(commands.run(slow, 60))
    await begun.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    may_end.set()

    async def answer() -> int:
        return 5

    assert await commands.run(answer, 60) == 5


async def test_closing_ends_what_nobody_waits_for() -> None:
    commands = BoundedCommands(2)
    stopped = 0

    async def never() -> None:
        nonlocal stopped
        try:
            await asyncio.Event().wait()
        finally:
            stopped += 1

    for _ in range(2):
        with pytest.raises(TimeoutError):
            await commands.run(never, 0.01)
    await commands.close()
    assert stopped == 2


async def test_who_still_waits_when_it_is_closed_is_told_as_if_time_were_up() -> None:
    commands = BoundedCommands(1)
    begun = asyncio.Event()

    async def never() -> None:
        begun.set()
        await asyncio.Event().wait()

    caller = asyncio.create_task(commands.run(never, 60))
    await begun.wait()
    await commands.close()
    with pytest.raises(TimeoutError):
        await caller


async def test_a_fault_that_comes_too_late_is_nobodys_business() -> None:
    commands = BoundedCommands(1)
    may_end = asyncio.Event()
    noise: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: noise.append(context))

    async def fail() -> None:
        await may_end.wait()
        raise OSError("late")

    with pytest.raises(TimeoutError):
        await commands.run(fail, 0.01)
    may_end.set()

    async def answer() -> int:
        return 5

    assert await commands.run(answer, 60) == 5
    assert noise == []
