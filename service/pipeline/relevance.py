"""The tag task: the relevance of given pairs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from service.errors import DeadlineExceeded, FieldError, InvalidQuery, InvalidRequest
from service.pipeline.generations import weight_of
from service.resilience.admission import Admission, Kind
from service.resilience.deadline import Deadline
from service.versions.registry import VersionRegistry
from service.versions.version import ModelVersion

_PAIRS_PER_CANDIDATE = 4
"""A tag takes one step of the engine; a candidate takes several."""


class Tagger:
    """Tags pairs of query and rewrite with a version's engine.

    Args:
        versions: the versions and their engines.
        admission: limits the work of each engine.
    """

    def __init__(self, versions: VersionRegistry, admission: Admission) -> None:
        self._versions = versions
        self._admission = admission

    async def tag(
        self, pairs: Iterable[tuple[str, str]], *, model_version: str | None, deadline: Deadline
    ) -> tuple[str, list[float]]:
        """The name of the version, and the relevance in [0, 1] of each pair, in order.

        Raises:
            UnknownVersion, VersionNotLoaded: the pinned version cannot serve.
            InvalidRequest, QueryTooLong: a text is blank or too long.
            EngineUnavailable: the engine is loading or down.
            Overloaded: the engine is full.
            DeadlineExceeded: the engine did not finish in time.
        """
        version = self._versions.route(model_version)
        normal = normal_pairs(version, pairs)
        gate = self._admission.gate(version.name, weight_of(version))
        weight = -(-len(normal) // _PAIRS_PER_CANDIDATE)
        try:
            with version.serving(), gate.admit(weight, Kind.RELEVANCE) as permit:
                async with asyncio.timeout(deadline.remaining()):
                    relevance = await version.engine.tag(normal)
                # The latency of tags says nothing about the latency of generations.
                permit.release(completed=False)
        except TimeoutError:
            raise DeadlineExceeded(
                "the pairs were not tagged in time; send fewer at once or allow more time"
            ) from None
        return version.name, relevance


def normal_pairs(version: ModelVersion, pairs: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """The pairs in the version's normal form.

    Raises:
        InvalidRequest: names every field that is blank or too long.
    """
    normal: list[tuple[str, str]] = []
    errors: list[FieldError] = []
    for i, texts in enumerate(pairs):
        done: list[str] = []
        for text, field in zip(texts, ("query", "rewrite"), strict=True):
            try:
                done.append(version.normal_form(text, field=f"pairs.{i}.{field}"))
            except InvalidQuery as error:
                errors += error.errors
        if len(done) == 2:
            normal.append((done[0], done[1]))
    if errors:
        raise InvalidRequest(errors)
    return normal
