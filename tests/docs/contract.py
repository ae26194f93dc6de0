"""What an answer may look like, by the OpenAPI document of the service."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import jsonschema_rs

VOLATILE = {
    "request_id",
    "digest",
    "p50",
    "p95",
    "latency_ms",
    "requests",
    "hits",
    "memory_bytes",
    "reserved_bytes",
    "limit_bytes",
    "stages_ms",
    "time",
    "id",
    "created_at",
    "replica",
    "description",
}
"""Members whose values differ from run to run: only their kind is compared."""


def schema_of(
    document: Mapping[str, Any], method: str, url: str, status: int, media: str
) -> Mapping[str, Any]:
    """The schema of an answer.

    Raises:
        AssertionError: the document does not know such an answer.
    """
    path = _template(document, urlsplit(url).path)
    responses = document["paths"][path][method.lower()]["responses"]
    assert str(status) in responses, f"{method} {path} is not documented to answer {status}"
    content = responses[str(status)].get("content", {})
    assert media in content, f"{method} {path} {status} is not documented to be {media}"
    schema: Mapping[str, Any] = content[media]["schema"]
    return schema


def _template(document: Mapping[str, Any], path: str) -> str:
    if path in document["paths"]:
        return path
    parts = path.split("/")
    for template in document["paths"]:
        known = template.split("/")
        if len(known) == len(parts) and all(
            a == b or a.startswith("{") for a, b in zip(known, parts, strict=True)
        ):
            return str(template)
    raise AssertionError(f"there is nothing at {path}")


def check(document: Mapping[str, Any], schema: Mapping[str, Any], content: Any) -> None:
    """Fail if ``content`` is not what ``schema`` of the document says."""
    whole = {**document, **schema}
    errors = [error.message for error in jsonschema_rs.iter_errors(whole, content)]
    assert not errors, f"{content} is not as the OpenAPI document says: {errors}"


def same(shown: Any, given: Any, where: str = "the answer") -> None:
    """Fail if an answer is not the one that is shown, but for what differs from run to run."""
    if isinstance(shown, dict) and isinstance(given, dict):
        assert shown.keys() == given.keys(), f"{where} has {set(given)}, and {set(shown)} is shown"
        for name, value in shown.items():
            if name not in VOLATILE:
                same(value, given[name], f"{where}.{name}")
            elif value is not None and given[name] is not None:
                kinds = (int, float) if isinstance(value, int | float) else type(value)
                assert isinstance(given[name], kinds), f"{where}.{name}"
    elif isinstance(shown, list) and isinstance(given, list):
        assert len(shown) == len(given), f"{where} has {len(given)} members, {len(shown)} are shown"
        for i, (one, other) in enumerate(zip(shown, given, strict=True)):
            same(one, other, f"{where}.{i}")
    elif isinstance(shown, str) and isinstance(given, str):
        assert _timeless(shown) == _timeless(given), f"{where} is {given!r}, not {shown!r}"
    else:
        assert shown == given, f"{where} is {given!r}, and {shown!r} is shown"


def _timeless(text: str) -> str:
    """``text`` without the seconds and made-up ids in it, which differ from run to run."""
    return re.sub(r"\b(\d+ s|[0-9a-f]{16})\b", "?", text)
