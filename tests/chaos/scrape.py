"""Metrics of a service, all of one name at a time."""

from __future__ import annotations

import re

import httpx

_SAMPLE = re.compile(r"(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


async def scrape(client: httpx.AsyncClient, name: str, *by: str) -> dict[tuple[str, ...], float]:
    """The samples called ``name``, by the values of the labels ``by``; equal ones add up."""
    return _samples((await client.get("/metrics")).text, name, by)


def total(client: httpx.Client, name: str) -> float:
    """The sum of all samples called ``name``."""
    return sum(_samples(client.get("/metrics").text, name, ()).values())


def _samples(text: str, name: str, by: tuple[str, ...]) -> dict[tuple[str, ...], float]:
    found: dict[tuple[str, ...], float] = {}
    for line in text.splitlines():
        if not line.startswith(name):
            continue
        sample = _SAMPLE.fullmatch(line)
        if sample is not None and sample["name"] == name:
            labels = dict(_LABEL.findall(sample["labels"] or ""))
            key = tuple(labels.get(label, "") for label in by)
            found[key] = found.get(key, 0.0) + float(sample["value"])
    return found
