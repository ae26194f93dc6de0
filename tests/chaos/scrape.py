"""Metrics of a service, all of one name at a time."""

from __future__ import annotations

import re

import httpx

_SAMPLE = re.compile(r"(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


async def scrape(client: httpx.AsyncClient, name: str, *by: str) -> dict[tuple[str, ...], float]:
    """The samples called ``name``, by the values of the labels ``by``; equal ones add up."""
    found: dict[tuple[str, ...], float] = {}
    for line in (await client.get("/metrics")).text.splitlines():
        if not line.startswith(name):
            continue
        sample = _SAMPLE.fullmatch(line)
        if sample is not None and sample["name"] == name:
            labels = dict(_LABEL.findall(sample["labels"] or ""))
            key = tuple(labels.get(label, "") for label in by)
            found[key] = found.get(key, 0.0) + float(sample["value"])
    return found
