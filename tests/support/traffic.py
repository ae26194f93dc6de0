"""Counts what crosses between this process and a real engine core."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Traffic:
    """What crossed, by engine request.

    Attributes:
        requests: ids of the requests sent, in order.
        steps: decode steps of each; an engine core reports every step's token.
        tokens: tokens reported for each.
    """

    requests: list[str] = field(default_factory=list)
    steps: Counter[str] = field(default_factory=Counter)
    tokens: Counter[str] = field(default_factory=Counter)
    _moved: asyncio.Event = field(default_factory=asyncio.Event)

    async def until_sent(self, n: int) -> None:
        """Wait for ``n`` requests to have been sent."""
        while len(self.requests) < n:
            self._moved.clear()
            await self._moved.wait()


@contextmanager
def watching(llm: Any) -> Iterator[Traffic]:
    """Count the traffic of an ``AsyncLLM`` for a block."""
    traffic = Traffic()
    core, processor = llm.engine_core, llm.output_processor
    add, process = core.add_request_async, processor.process_outputs

    async def counted_add(request: Any) -> None:
        await add(request)
        traffic.requests.append(request.request_id)
        traffic._moved.set()

    def counted_process(outputs: list[Any], *args: Any, **kwargs: Any) -> Any:
        for output in outputs:
            traffic.steps[output.request_id] += 1
            traffic.tokens[output.request_id] += len(output.new_token_ids)
        return process(outputs, *args, **kwargs)

    core.add_request_async, processor.process_outputs = counted_add, counted_process
    try:
        yield traffic
    finally:
        core.add_request_async, processor.process_outputs = add, process
