"""Guards and requests for tests of what they guard."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import CollectorRegistry
from pydantic import SecretStr
from starlette.requests import Request

from service.security.auth import Auth, Guard
from service.security.keyring import KeyRing
from service.security.metrics import AuthMetrics, KeyMetrics
from service.telemetry.request_context import RequestContext, attach


def auth_with(
    key: str | None = None, *, file: Path | None = None, registry: CollectorRegistry | None = None
) -> Auth:
    """Keys as the settings have them: an admin key, a file, both or none."""
    registry = registry or CollectorRegistry()
    ring = KeyRing(
        admin=None if key is None else SecretStr(key), file=file, metrics=KeyMetrics(registry)
    )
    ring.load()
    return Auth(ring, AuthMetrics(registry))


def admin_guard(key: str | None) -> Guard:
    """The guard of what needs the scope ``admin``, with this admin key or without keys."""
    return auth_with(key).guard("admin")


def open_guard() -> Guard:
    """A guard that lets everybody through: of reading, as it is without keys."""
    return auth_with().guard("any")


def request(client: str | None = "203.0.113.7", **headers: str | bytes) -> Request:
    """A request from ``client`` (``None``: a unix socket) as the edge sees it."""
    raw = [
        (k.replace("_", "-").encode(), v if isinstance(v, bytes) else v.encode("latin-1"))
        for k, v in headers.items()
    ]
    where = (client, 1234) if client else None
    scope = {"type": "http", "headers": raw, "client": where, "path": "/"}
    attach(scope, RequestContext("test"))
    return Request(scope)
