"""Batches lines until the end of an iteration of the event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


class LineBuffer:
    """Collects lines in one thread; its event loop writes them once per iteration.

    Args:
        write: writes one or more lines, in order.
    """

    def __init__(self, write: Callable[[Sequence[str]], None]) -> None:
        self._write = write
        self._kept: list[str] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        # Reentrant because a signal handler may flush in between.
        self._lock = threading.RLock()

    @contextmanager
    def batched_writes(self) -> Iterator[None]:
        """Batch lines within this context; enter it in the event loop."""
        before = self._loop, self._thread
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()
        try:
            yield
        finally:
            self._loop, self._thread = before
            self.flush()

    def keep(self, text: str) -> bool:
        """Keep a line for the batch; ``False`` if the caller must write it."""
        if self._loop is None or self._thread != threading.get_ident():
            return False
        with self._lock:
            self._kept.append(text)
            first = len(self._kept) == 1
        if first:
            self._loop.call_soon(self.flush)
        return True

    def flush(self) -> None:
        """Write the batch now; from any thread."""
        if not self._kept:
            return
        with self._lock:
            kept, self._kept = self._kept, []
            if kept:
                self._write(kept)
