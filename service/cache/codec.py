"""Entries as stored in Redis: a small JSON array that keeps each relevance exactly.

The verdicts that depend on no request are in it, since finding them costs several times what
reading them does. They count as long as :data:`service.filtering.filters.RULES` are those by which
they were found; else the candidates are judged anew.
"""

from __future__ import annotations

import orjson

from service.cache.keys import SCHEMA
from service.cache.lifetimes import Entry, Lifetimes
from service.filtering.candidates import Judged, Scored, Verdict
from service.filtering.filters import RULES
from service.filtering.generation import Generation

MAX_BYTES = 64 * 1024
"""Longest value written or read; real entries are far shorter."""

_HEAD = 4
_EACH = 5
_VERDICTS = {verdict.value: verdict for verdict in Verdict}


class CorruptValue(Exception):
    """The value under a key is no entry of this schema."""


def encode(entry: Entry) -> bytes:
    """``[schema, stored-at (ms since the epoch), empty (0 or 1), rules (0: not judged), ...]``.

    Then for each candidate ``text, relevance|null, votes, verdict, agreement``, by falling
    relevance and in the normal form. Candidates without a verdict are written as the engine gave
    them, with ``null, 0`` at the end.
    """
    generation = entry.generation
    judged = generation.known_verdicts
    rules = 0 if judged is None else RULES
    flat: list[object] = [SCHEMA, int(entry.stored_at * 1000), int(entry.empty), rules]
    if judged is None:
        for scored in generation.candidates:
            flat += (*scored, None, 0)
    else:
        for one in judged:
            flat += (one.text, one.relevance, one.votes, one.verdict, one.agreement)
    return orjson.dumps(flat)


def decode(raw: object, key: str, lifetimes: Lifetimes) -> Entry:
    """The inverse of :func:`encode`; the expiry is computed again.

    Raises:
        CorruptValue: :func:`encode` cannot have written it.
    """
    if not isinstance(raw, bytes) or len(raw) > MAX_BYTES:
        raise CorruptValue("no bytes, or too many")
    try:
        flat = orjson.loads(raw)
    except ValueError as error:  # orjson.JSONDecodeError is one
        raise CorruptValue("not JSON") from error
    if not isinstance(flat, list) or flat[:1] != [SCHEMA]:
        raise CorruptValue("another schema")
    if len(flat) < _HEAD or (len(flat) - _HEAD) % _EACH:
        raise CorruptValue("cut short")
    _, stored_ms, empty, rules = flat[:_HEAD]
    if type(stored_ms) is not int or stored_ms < 0 or empty not in (0, 1) or type(rules) is not int:
        raise CorruptValue("no times")
    texts, relevances, votes, verdicts, agreements = (
        flat[i::_EACH] for i in range(_HEAD, _HEAD + _EACH)
    )
    scored = tuple(map(_scored, texts, relevances, votes))
    judged = None
    if rules == RULES:
        judged = tuple(map(_judged, texts, relevances, votes, verdicts, agreements))
    generation = Generation(scored, judged)
    return lifetimes.entry(key, generation, empty=bool(empty), stored_at=stored_ms / 1000)


def _scored(text: object, relevance: object, votes: object) -> Scored:
    if type(text) is not str:
        raise CorruptValue("a text is none")
    if relevance is not None and not (type(relevance) is float and 0.0 <= relevance <= 1.0):
        raise CorruptValue("a relevance is none")
    if type(votes) is not int or votes < 1:
        raise CorruptValue("a number of votes is none")
    return Scored(text, relevance, votes)


def _judged(
    text: str, relevance: float | None, votes: int, verdict: object, agreement: object
) -> Judged:
    known = _VERDICTS.get(verdict) if isinstance(verdict, str) else None
    if known is None or type(agreement) is not int or agreement < 1:
        raise CorruptValue("a verdict is none")
    if relevance is None and known is Verdict.ACCEPTED:
        raise CorruptValue("what has no relevance is not accepted")
    return Judged(text, relevance, known, None, votes, agreement)
