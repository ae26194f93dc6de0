"""Cache keys: schema, model version and query.

Decoding parameters are part of the version's digest, as is everything else of the manifest that
can change an answer: a new digest means new keys, and nothing has to be purged.
"""

from __future__ import annotations

import hashlib

SCHEMA = 4
"""Raised when the stored value changes its meaning."""


def cache_key(digest: str, query: str) -> str:
    """The key of a normalised query for the version with this digest.

    The query is hashed (128 bits of BLAKE2b), so that keys have one length and show no query.
    The digest stays in clear, so that one version's keys can be told from another's.
    """
    hashed = hashlib.blake2b(query.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return version_prefix(digest) + hashed


def version_prefix(digest: str) -> str:
    """What all keys of the version with this digest start with, and no others."""
    return f"requery:{SCHEMA}:{digest[:32]}:"


def prefix_of(key: str) -> str:
    """The :func:`version_prefix` that a key starts with."""
    return key[: key.rfind(":") + 1]
