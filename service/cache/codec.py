"""How an entry is written in Redis: a small JSON array, relevance to the last bit."""

from __future__ import annotations

import orjson

from service.cache.keys import SCHEMA
from service.cache.lifetimes import Entry, Lifetimes
from service.candidates import Generation, Scored

MAX_BYTES = 64 * 1024
"""Longest value written or read; nothing of ours comes near it."""

_HEAD = 3


class CorruptValue(Exception):
    """The bytes under a key are not an entry of this schema."""


def encode(entry: Entry) -> bytes:
    """``[schema, stored-at (ms since the epoch), empty (0 or 1), text, relevance|null, ...]``."""
    flat: list[object] = [SCHEMA, int(entry.stored_at * 1000), int(entry.empty)]
    for candidate in entry.generation.candidates:
        flat += candidate
    return orjson.dumps(flat)


def decode(raw: object, key: str, lifetimes: Lifetimes) -> Entry:
    """The inverse of :func:`encode`; the end of the entry's life is worked out anew.

    Raises:
        CorruptValue: for anything that :func:`encode` would not have written.
    """
    if not isinstance(raw, bytes) or len(raw) > MAX_BYTES:
        raise CorruptValue("not a value of ours")
    try:
        flat = orjson.loads(raw)
    except ValueError as error:  # orjson.JSONDecodeError is one
        raise CorruptValue("not JSON") from error
    if not isinstance(flat, list) or flat[:1] != [SCHEMA]:
        raise CorruptValue("another schema")
    if len(flat) < _HEAD or (len(flat) - _HEAD) % 2:
        raise CorruptValue("cut short")
    _, stored_ms, empty = flat[:_HEAD]
    if type(stored_ms) is not int or stored_ms < 0 or empty not in (0, 1):
        raise CorruptValue("no times")
    pairs = zip(flat[_HEAD::2], flat[_HEAD + 1 :: 2], strict=True)
    generation = Generation(tuple(_scored(text, relevance) for text, relevance in pairs))
    return lifetimes.entry(key, generation, empty=bool(empty), stored_at=stored_ms / 1000)


def _scored(text: object, relevance: object) -> Scored:
    if not isinstance(text, str):
        raise CorruptValue("a text is none")
    if relevance is None:
        return Scored(text, None)
    if not isinstance(relevance, float) or not 0.0 <= relevance <= 1.0:
        raise CorruptValue("a relevance is none")
    return Scored(text, relevance)
