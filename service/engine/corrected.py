"""An engine whose candidates include a spelling correction, tagged by the model itself."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from model_store.store import Version
from service.engine.errors import QueryTooLong
from service.engine.protocol import Candidate, Engine
from service.spelling import Corrector

VOTES = 4
"""Candidates that a correction counts for, as if the model had said it so often: among candidates
that are all good enough it mostly comes first then. Chosen on the development fold, where, of one
rewrite and of two, it gains 0.002 to 0.004 recall over counting once."""


class CorrectedEngine:
    """Adds a correction to the candidates of another engine (:class:`Engine`).

    A query with a word that the catalogue does not know is corrected while the model writes, and
    the pair is tagged in the same batch: it costs one prompt of prefill, and is there first.

    Args:
        engine: writes and tags.
        corrector: knows the catalogue's words.
    """

    def __init__(self, engine: Engine, corrector: Corrector) -> None:
        self._engine = engine
        self._corrector = corrector

    @property
    def healthy(self) -> bool:
        """That of the engine."""
        return self._engine.healthy

    @property
    def outstanding(self) -> int:
        """That of the engine."""
        return self._engine.outstanding

    @property
    def progress(self) -> int:
        """That of the engine."""
        return self._engine.progress

    @property
    def effort(self) -> float:
        """That of the engine."""
        return self._engine.effort

    async def start(self) -> None:
        """See :meth:`service.engine.protocol.Engine.start`."""
        await self._engine.start()

    async def generate(self, query: str) -> AsyncGenerator[Candidate]:
        """See :meth:`service.engine.protocol.Engine.generate`.

        A correction comes as :data:`VOTES` equal candidates, without token ids.
        """
        stream: Any = self._engine.generate(query)
        async with aclosing(stream):
            if not self._corrector.may_correct(query):
                async for candidate in stream:
                    yield candidate
                return
            correction = asyncio.create_task(self._correction(query))
            following = asyncio.create_task(_next(stream))
            try:
                waiting: set[asyncio.Task[Any]] = {correction, following}
                while waiting:
                    done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    if correction in done:
                        for candidate in correction.result():
                            yield candidate
                    if following in done:
                        found = following.result()
                        if found is not None:
                            yield found
                            following = asyncio.create_task(_next(stream))
                            waiting.add(following)
            finally:
                await _stop(correction, following)

    async def tag(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """See :meth:`service.engine.protocol.Engine.tag`."""
        return await self._engine.tag(pairs)

    async def close(self) -> None:
        """See :meth:`service.engine.protocol.Engine.close`."""
        await self._engine.close()

    async def _correction(self, query: str) -> list[Candidate]:
        """The corrected query as often as it counts; nothing if there is none."""
        text = await asyncio.to_thread(self._corrector, query)
        if text is None:
            return []
        try:
            (relevance,) = await self._engine.tag([(query, text)])
        except QueryTooLong:
            # For two texts; one of them may well be answered.
            return []
        return [Candidate(text, (), relevance)] * VOTES


def with_spelling(engine: Engine, version: Version, cache_dir: Path) -> Engine:
    """The engine of a version, with the version's corrector if it has one.

    Args:
        engine: writes and tags.
        version: as the model store has it.
        cache_dir: where the store keeps what it fetches.

    Raises:
        ModelStoreError: the corrector's words cannot be read.
    """
    spec = version.manifest.spelling
    if spec is None:
        return engine
    return CorrectedEngine(engine, Corrector.of(spec, version.folder(cache_dir)))


async def _next(stream: Any) -> Candidate | None:
    return await anext(stream, None)


async def _stop(*tasks: asyncio.Task[Any]) -> None:
    """The stream cannot be closed while somebody waits for its next candidate."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
