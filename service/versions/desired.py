"""The versions that every replica should have loaded: the document ``roster``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from service.control.documents import Document
from service.control.metrics import ControlMetrics
from service.control.store import DocumentStore

DOCUMENT = "roster"
SCHEMA = 1


class DesiredVersions:
    """The document ``{"versions": [name, ...]}``, which all replicas share.

    Args:
        store: where it is stored.
        initial: names that are desired until an operator changes the document: the configured
            default. It stays loaded when another version becomes the default, so going back is
            instant.
        metrics: of all control documents.
    """

    def __init__(
        self, store: DocumentStore, *, initial: Iterable[str], metrics: ControlMetrics
    ) -> None:
        self.document = Document(
            store,
            DOCUMENT,
            schema=SCHEMA,
            parse=parse,
            initial=frozenset(initial),
            dump=lambda names: {"versions": sorted(names)},
            metrics=metrics,
        )

    def __contains__(self, name: str) -> bool:
        """Whether the version is desired."""
        return name in self.document.value

    @property
    def names(self) -> frozenset[str]:
        """Names of the desired versions."""
        return self.document.value

    @property
    def durable(self) -> bool:
        """Whether all replicas follow the document and it survives a restart."""
        return self.document.durable

    def on_change(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` after each change."""
        self.document.on_change(lambda _names: listener())

    async def add(self, name: str, *, author: str) -> None:
        """Desire a version; does nothing if it is desired already.

        Raises:
            DocumentStoreUnavailable, NewerSchema: the document cannot be stored.
        """
        if name not in self:
            await self.document.update(
                lambda names: names | {name}, action="version.load", author=author
            )

    async def remove(self, name: str, *, author: str) -> None:
        """No longer desire a version; raises as :meth:`add` does."""
        if name in self:
            await self.document.update(
                lambda names: names - {name}, action="version.unload", author=author
            )


def parse(body: dict[str, Any]) -> frozenset[str]:
    """Read a stored body.

    Raises:
        ValueError: it is not a document of this schema.
    """
    names = body.get("versions")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError('"versions" must be a list of names')
    return frozenset(names)
