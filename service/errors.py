"""The errors of the service: one hierarchy, each with its HTTP status.

Each class has a ``status`` (HTTP), a ``slug`` (the stable end of the problem ``type``) and a
``title``; the message says what to do. :mod:`service.api.problems` turns errors into
``application/problem+json``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

TYPE_PREFIX = "urn:requery:problem:"
"""Prefix of problem ``type`` URIs, which name the kind of error and are not addresses."""


class RequeryError(Exception):
    """Base of all errors of the service.

    Clients see the message: it contains no secret, no path and no unprintable input.
    """

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"

    @property
    def headers(self) -> Mapping[str, str]:
        """Response headers of the error."""
        return {}


@dataclass(frozen=True, slots=True)
class FieldError:
    """What is wrong with one field of a request (``pairs.3.query``, ``header.X-...``)."""

    field: str
    detail: str


class InvalidJson(RequeryError):
    """The body is not JSON."""

    status, slug, title = 400, "invalid-json", "The body is not valid JSON"


class InvalidRequest(RequeryError):
    """The body is JSON with invalid fields."""

    status, slug, title = 422, "invalid-request", "The request has invalid fields"

    def __init__(self, errors: Sequence[FieldError]) -> None:
        self.errors = tuple(errors)
        super().__init__("; ".join(f"{e.field}: {e.detail}" for e in self.errors))


class InvalidQuery(InvalidRequest):
    """The normal form of the query is empty or too long."""

    slug, title = "invalid-query", "The query cannot be rewritten"

    def __init__(self, detail: str, *, field: str = "query") -> None:
        super().__init__([FieldError(field, detail)])


class QueryTooLong(RequeryError):
    """A text has more tokens than the engine accepts."""

    status, slug, title = 422, "query-too-long", "The text has too many tokens"


class Unauthorized(RequeryError):
    """The API key is missing or unknown."""

    status, slug, title = 401, "unauthorized", "A valid key is needed"

    @property
    def headers(self) -> Mapping[str, str]:
        """How to send the key."""
        return {"WWW-Authenticate": 'Bearer realm="requery"'}


class Forbidden(RequeryError):
    """The client may not do this."""

    status, slug, title = 403, "forbidden", "This is not allowed from here"


class TooManyRequests(RequeryError):
    """The client exceeds its rate limit.

    Args:
        detail: what is limited.
        wait_s: seconds until the client may try again.
    """

    status, slug, title = 429, "too-many-requests", "Too many requests"

    def __init__(self, detail: str, *, wait_s: float) -> None:
        self._retry_after_s = max(1, math.ceil(wait_s))
        super().__init__(f"{detail}; try again in {self._retry_after_s} s")

    @property
    def headers(self) -> Mapping[str, str]:
        """When to try again."""
        return {"Retry-After": str(self._retry_after_s)}


class PayloadTooLarge(RequeryError):
    """The body exceeds the limit."""

    status, slug, title = 413, "payload-too-large", "The body is too large"


class MalformedRequest(RequeryError):
    """The client did not send valid HTTP."""

    status, slug, title = 400, "malformed-request", "The request is not valid HTTP"


class RequestTimeout(RequeryError):
    """The request did not arrive completely in time."""

    status, slug, title = 408, "request-timeout", "The request took too long to arrive"

    @property
    def headers(self) -> Mapping[str, str]:
        """Close the connection, because the rest of the request may still arrive."""
        return {"Connection": "close"}


class HeadersTooLarge(RequeryError):
    """The request line and headers exceed the limit."""

    status, slug, title = 431, "headers-too-large", "The request headers are too large"


class UnsupportedMediaType(RequeryError):
    """The body is not declared as JSON."""

    status, slug, title = 415, "unsupported-media-type", "The body must be declared as JSON"


class UnknownVersion(RequeryError):
    """No model version has that name."""

    status, slug, title = 404, "unknown-version", "No such model version"


class VersionNotLoaded(RequeryError):
    """The model version exists but is not served."""

    status, slug, title = 409, "version-not-loaded", "The model version is not loaded"


class VersionInUse(RequeryError):
    """The model version cannot be unloaded because requests are routed to it."""

    status, slug, title = 409, "version-in-use", "The model version is in use"


class VersionDraining(RequeryError):
    """The model version must be unloaded before it can be loaded again."""

    status, slug, title = 409, "version-draining", "The model version is being unloaded"


class LoadFailed(RequeryError):
    """The engine of a model version did not start or did not answer its first queries."""

    status, slug, title = 500, "version-load-failed", "The model version could not be loaded"


class InsufficientMemory(RequeryError):
    """The engine of a model version does not fit beside the loaded ones."""

    status, slug, title = 507, "insufficient-memory", "There is not enough memory for the version"


class _Unavailable(RequeryError):
    """A temporary error: the client may try again."""

    status = 503
    retry_after_s: ClassVar[int] = 1

    @property
    def headers(self) -> Mapping[str, str]:
        return {"Retry-After": str(self.retry_after_s)}


class Overloaded(_Unavailable):
    """The engine is full.

    Args:
        detail: what is full.
        wait_s: predicted seconds until a like request would be admitted.
    """

    slug, title = "overloaded", "There is too much to do"

    def __init__(self, detail: str, *, wait_s: float = 1.0) -> None:
        self._wait_s = wait_s
        super().__init__(detail)

    @property
    def headers(self) -> Mapping[str, str]:
        """When to try again."""
        return {"Retry-After": str(max(self.retry_after_s, math.ceil(self._wait_s)))}


class ClientDisconnected(RequeryError):
    """The client has disconnected; only the log sees the error."""

    status, slug, title = 499, "caller-left", "The caller has hung up"


class EngineUnavailable(_Unavailable):
    """The engine of a version is loading, has died or did not start."""

    slug, title = "engine-unavailable", "The engine is not available"


class NotReady(_Unavailable):
    """The process is alive but its default version cannot answer."""

    slug, title = "not-ready", "The service is not ready"


class CacheUnavailable(_Unavailable):
    """The shared cache did not answer, so a purge is incomplete."""

    slug, title = "cache-unavailable", "The shared cache cannot be reached"


class TooManyConnections(_Unavailable):
    """The server has reached its limit of connections."""

    slug, title = "too-many-connections", "Too many connections are open"


class Stopping(_Unavailable):
    """The process stopped before the answer was ready."""

    slug, title = "stopping", "The service is stopping"


class DocumentStoreUnavailable(_Unavailable):
    """The shared control documents cannot be read or written now."""

    slug, title = "control-unavailable", "The shared control documents cannot be reached"


class StaleRevision(RequeryError):
    """A control document has changed since the client read it."""

    status, slug, title = 412, "precondition-failed", "The document has changed since it was read"

    def __init__(self, document: str, current: int) -> None:
        self.current = current
        super().__init__(
            f"{document} is at revision {current}; read it again and send the change with "
            f'If-Match: "{current}"'
        )

    @property
    def headers(self) -> Mapping[str, str]:
        """The current revision, as an entity tag."""
        return {"ETag": f'"{self.current}"'}


class NewerSchema(RequeryError):
    """A newer release has written the control document."""

    status, slug, title = 409, "newer-schema", "The document is of a newer release"


class UnreadableDocument(RequeryError):
    """The stored control document is invalid."""

    status, slug, title = 409, "unreadable-document", "The stored document cannot be read"


class PreconditionRequired(RequeryError):
    """The change needs ``If-Match``, because others may have changed the document."""

    status, slug, title = 428, "precondition-required", "The header If-Match is required"


class UnknownOverride(RequeryError):
    """No override has that id."""

    status, slug, title = 404, "unknown-override", "No such override"


class OverrideConflict(RequeryError):
    """An override conflicts with existing ones."""

    status, slug, title = 409, "override-conflict", "The override conflicts with others"


class DeadlineExceeded(RequeryError):
    """The deadline passed without a partial answer."""

    status, slug, title = 504, "deadline-exceeded", "The deadline passed"
