"""Pages of lists that grow: ``limit`` and ``offset`` of the query string."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.requests import Request

from service.api.schemas import parameter
from service.errors import FieldError, InvalidRequest

_Item = TypeVar("_Item")


@dataclass(frozen=True, slots=True)
class Paging:
    """How a list is paged.

    Attributes:
        most: bound on both parameters; the list is never longer.
        default: entries of a page without ``limit``.
    """

    most: int
    default: int

    def parameters(self) -> list[dict[str, Any]]:
        """OpenAPI for the two parameters."""
        bounds: dict[str, Any] = {"type": "integer", "maximum": self.most}
        return [
            parameter("query", "limit", "Most entries.", minimum=1, default=self.default, **bounds),
            parameter("query", "offset", "Entries to skip.", minimum=0, default=0, **bounds),
        ]

    def page(self, request: Request) -> Page:
        """The page that a request asks for.

        Raises:
            InvalidRequest: a parameter is no whole number within its bounds.
        """
        limit = self._number(request, "limit", least=1, default=self.default)
        return Page(limit, self._number(request, "offset", least=0, default=0))

    def _number(self, request: Request, name: str, *, least: int, default: int) -> int:
        given = request.query_params.get(name)
        if given is None:
            return default
        known = given.isascii() and given.isdigit() and len(given) <= len(str(self.most))
        if not known or not least <= int(given) <= self.most:
            raise InvalidRequest(
                [FieldError(f"query {name}", f"must be a whole number from {least} to {self.most}")]
            )
        return int(given)


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list."""

    limit: int
    offset: int

    @property
    def end(self) -> int:
        """Index of the first entry after the page."""
        return self.offset + self.limit

    def of(self, items: Sequence[_Item]) -> tuple[list[_Item], int | None]:
        """The entries of the page, and ``offset`` of the next one if there is more."""
        return list(items[self.offset : self.end]), self.end if len(items) > self.end else None
