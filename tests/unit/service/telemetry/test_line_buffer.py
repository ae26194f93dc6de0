"""What is kept until the end of a turn is handed over in order, and never lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

import pytest

from service.telemetry.line_buffer import LineBuffer
from tests.support.waiting import turns


class Seen:
    def __init__(self) -> None:
        self.pieces: list[list[str]] = []
        self.turn = LineBuffer(self.take)

    def take(self, texts: Sequence[str]) -> None:
        self.pieces.append(list(texts))


@pytest.fixture
def seen() -> Seen:
    return Seen()


def test_without_a_loop_nothing_is_kept(seen: Seen) -> None:
    assert not seen.turn.keep("a")
    assert seen.pieces == []


async def test_texts_of_one_turn_are_handed_over_together(seen: Seen) -> None:
    with seen.turn.batched_writes():
        assert seen.turn.keep("a")
        assert seen.turn.keep("b")
        assert seen.pieces == []
        await turns(2)
        assert seen.pieces == [["a", "b"]]
        assert seen.turn.keep("c")
        await turns(2)
    assert seen.pieces == [["a", "b"], ["c"]]


async def test_the_end_loses_nothing(seen: Seen) -> None:
    with seen.turn.batched_writes():
        seen.turn.keep("a")
    assert seen.pieces == [["a"]]
    assert not seen.turn.keep("b")
    await turns(2)
    assert seen.pieces == [["a"]]


async def test_a_fault_loses_nothing(seen: Seen) -> None:
    def work() -> None:
        with seen.turn.batched_writes():
            seen.turn.keep("a")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work()
    assert seen.pieces == [["a"]]


async def test_other_threads_write_for_themselves_and_may_flush(seen: Seen) -> None:
    kept: list[bool] = []

    def other() -> None:
        kept.append(seen.turn.keep("theirs"))
        seen.turn.flush()

    with seen.turn.batched_writes():
        seen.turn.keep("ours")
        thread = threading.Thread(target=other)
        thread.start()
        await asyncio.to_thread(thread.join)
    assert kept == [False]
    assert seen.pieces == [["ours"]]
