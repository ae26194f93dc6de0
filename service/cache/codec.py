"""How a generation is written in Redis: a small JSON array, relevance to the last bit."""

from __future__ import annotations

import orjson

from service.cache.keys import SCHEMA
from service.candidates import Generation, Scored

MAX_BYTES = 64 * 1024
"""Longest value written or read; nothing of ours comes near it."""


class CorruptValue(Exception):
    """The bytes under a key are not a generation of this schema."""


def encode(generation: Generation) -> bytes:
    """``[schema, [[text, relevance|null], ...]]``."""
    return orjson.dumps([SCHEMA, [[c.text, c.relevance] for c in generation.candidates]])


def decode(raw: object) -> Generation:
    """The inverse of :func:`encode`.

    Raises:
        CorruptValue: for anything that :func:`encode` would not have written.
    """
    if not isinstance(raw, bytes) or len(raw) > MAX_BYTES:
        raise CorruptValue("not a value of ours")
    try:
        schema, rows = orjson.loads(raw)
        generation = Generation(tuple(_scored(text, relevance) for text, relevance in rows))
    except (ValueError, TypeError) as error:  # orjson.JSONDecodeError is a ValueError
        raise CorruptValue("not a generation") from error
    if schema != SCHEMA:
        raise CorruptValue("another schema")
    return generation


def _scored(text: object, relevance: object) -> Scored:
    if not isinstance(text, str):
        raise TypeError("text")
    if relevance is None:
        return Scored(text, None)
    if not isinstance(relevance, float) or not 0.0 <= relevance <= 1.0:
        raise TypeError("relevance")
    return Scored(text, relevance)
