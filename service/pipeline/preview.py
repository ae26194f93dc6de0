"""Rewrites of a version without the cache: for shadow traffic."""

from __future__ import annotations

from service.overrides.live import Overrides
from service.pipeline.generations import Generations
from service.versions.registry import VersionRegistry


class Preview:
    """Generates with a version as it would be served: a :class:`service.routing.shadow.Generate`.

    Args:
        versions: the versions and their engines.
        overrides: blocked terms.
        generations: generates.
    """

    def __init__(
        self, *, versions: VersionRegistry, overrides: Overrides, generations: Generations
    ) -> None:
        self._versions = versions
        self._overrides = overrides
        self._generations = generations

    async def __call__(self, version: str, query: str) -> tuple[str, ...]:
        """The texts of the rewrites that would be accepted.

        Raises:
            UnknownVersion, VersionNotLoaded: the version cannot serve.
            EngineUnavailable, InvalidQuery, Overloaded, QueryTooLong: it cannot generate.
        """
        serving = self._versions.serving(version)
        with serving.serving():
            normal = serving.normal_form(query)
            generation = await self._generations.preview(serving, normal)
            selection = serving.filter.select(
                generation.verdicts(normal, serving.filter), blocked=self._overrides.blocked
            )
        return tuple(one.text for one in selection.accepted)
