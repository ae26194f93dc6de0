"""Overrides in a document store of this process, with a clock that tests set."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from service.control.metrics import ControlMetrics
from service.control.store import DocumentStore, LocalDocumentStore
from service.overrides.editor import OverrideEditor
from service.overrides.entries import Entry, read_entry
from service.overrides.file import overrides_file
from service.overrides.live import Overrides, overrides_document
from service.overrides.metrics import OverrideMetrics

NOW = 1_800_000_000.0
"""2027-01-15 08:00 UTC."""
SOON, LATER, BEFORE = "2027-01-15T08:00:10Z", "2027-01-16T08:00:00Z", "2027-01-15T07:59:59Z"


def block(query: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "block_query", "query": query, "reason": "wrong", **fields}


def term(text: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "block_term", "term": text, "reason": "wrong", **fields}


def pin(query: str, *rewrites: str, **fields: Any) -> dict[str, Any]:
    return {"kind": "pin", "query": query, "rewrites": [*rewrites], "reason": "better", **fields}


def entry(content: dict[str, Any]) -> Entry:
    """As a file or the shared document holds it."""
    subject = str(content.get("query") or content.get("term"))
    return read_entry(
        {"id": re.sub("[^a-z0-9]+", "-", subject, flags=re.IGNORECASE), "author": "ada"} | content
    )


class World:
    """The parts, as one process has them."""

    def __init__(self, *, store: DocumentStore | None = None, file: Path | None = None) -> None:
        self.time = NOW
        self.registry = CollectorRegistry()
        self.store = store or LocalDocumentStore()
        self.document = overrides_document(self.store, ControlMetrics(CollectorRegistry()))
        metrics = OverrideMetrics(self.registry)
        self.file = None
        if file is not None:
            self.file = overrides_file(file, metrics)
            self.file.load()
        self.live = Overrides(
            self.document, file=self.file, metrics=metrics, clock=lambda: self.time
        )
        self.editor = OverrideEditor(self.document, self.live)

    async def add(self, content: dict[str, Any]) -> str:
        """The id."""
        added = await self.editor.add(read_entry(content), author="ada")
        assert added.id is not None
        return added.id

    def metric(self, name: str, **labels: str) -> float:
        found = self.registry.get_sample_value(name, labels)
        assert found is not None, name
        return found

    def hits(self) -> dict[str, int]:
        """By what the override is about."""
        return {one.subject: hits for one, _, hits in self.live.in_force()}
