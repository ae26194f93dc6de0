"""Cache keys: schema, model version and query.

The version's digest covers the decoding parameters and everything else in the manifest that can
change an answer: a new digest means new keys, and nothing has to be purged.
"""

from __future__ import annotations

import hashlib

SCHEMA = 4
"""Raised when the meaning of the stored value changes."""


def cache_key(digest: str, query: str) -> str:
    """The key of a normalised query for the version with this digest.

    The query is hashed (128 bits of BLAKE2b), so that keys have one length and do not show it.
    The digest stays readable, so that the keys of one version can be found.
    """
    hashed = hashlib.blake2b(query.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    return version_prefix(digest) + hashed


def version_prefix(digest: str) -> str:
    """The prefix of all keys of the version with this digest, and of no others."""
    return f"requery:{SCHEMA}:{digest[:32]}:"


def prefix_of(key: str) -> str:
    """The :func:`version_prefix` of a key."""
    return key[: key.rfind(":") + 1]
