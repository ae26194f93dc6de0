"""What the service itself says of where the time went."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from loadtests.client import HttpTransport
from loadtests.summary import milliseconds, percentile

_ENTRY = re.compile(r"([a-z]+);dur=([0-9.]+)")
_DETAIL = re.compile(r"detail=([a-z]+)")


def server_timing(header: str) -> dict[str, float]:
    """Seconds by stage of a ``Server-Timing`` header."""
    return {name: float(value) / 1000 for name, value in _ENTRY.findall(header)}


class TimedTransport(HttpTransport):
    """Keeps the stages of every answer, by where the answer is from.

    Attributes:
        stages: for each source (``memory``, ``redis``, ``miss``) the stages of each answer.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.stages: dict[str, list[dict[str, float]]] = defaultdict(list)

    async def fetch(
        self, method: str, path: str, body: bytes | None, headers: dict[str, str]
    ) -> tuple[int, Any, bytes]:
        """See :meth:`HttpTransport.fetch`."""
        code, answered, content = await super().fetch(method, path, body, headers)
        timing = answered.get("server-timing")
        if code == 200 and timing:
            self.stages[_source(answered)].append(server_timing(timing))
        return code, answered, content


def _source(headers: Mapping[str, str]) -> str:
    said = headers.get("cache-status", "")
    detail = _DETAIL.search(said)
    return detail[1] if detail else "miss"


def breakdown(answers: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Median of each stage in milliseconds, the total included."""
    names = dict.fromkeys(name for stages in answers for name in stages)
    medians = {name: percentile([s.get(name, 0.0) for s in answers], 50.0) for name in names}
    return {name: round(1000 * (value or 0.0), 4) for name, value in medians.items()}


def own_share(answers: Sequence[Mapping[str, float]]) -> dict[str, Any] | None:
    """What the service adds to the engine's time, by its own account; ``None`` without answers.

    That is the total less the stage ``generate``, which ends when the last candidate is there. The
    way from socket to stopwatch and back is not in it: see what the misses say of the raw engine.
    """
    shares = [a["total"] - a["generate"] for a in answers if {"total", "generate"} <= a.keys()]
    totals = [a["total"] for a in answers if {"total", "generate"} <= a.keys()]
    if not shares:
        return None
    ratio = percentile([s / t for s, t in zip(shares, totals, strict=True) if t], 50.0)
    return {
        "own_ms": milliseconds(shares),
        "total_ms": milliseconds(totals),
        "share_of_total": None if ratio is None else round(ratio, 5),
        "stages_ms": breakdown(answers),
    }
