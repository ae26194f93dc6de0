"""Errors that the service raises on purpose: one hierarchy, each with its HTTP status.

Every error knows how it is told to a caller: ``status`` (HTTP), ``slug`` (the stable end of the
problem ``type``), ``title`` (the same for all errors of the class) and a message that says what
to do. One handler (:mod:`service.api.problems`) turns them into ``application/problem+json``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

TYPE_PREFIX = "urn:requery:problem:"
"""What problem ``type`` URIs start with; they name the kind of error and are no address."""


class RequeryError(Exception):
    """Base of everything that the service raises on purpose.

    The message is shown to callers: it holds no secret, no path and no unprintable input.
    """

    status: ClassVar[int] = 500
    slug: ClassVar[str] = "internal"
    title: ClassVar[str] = "Internal error"

    @property
    def headers(self) -> Mapping[str, str]:
        """Response headers that go with the error."""
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
    """The body is JSON, and its fields are not what the operation takes."""

    status, slug, title = 422, "invalid-request", "The request has invalid fields"

    def __init__(self, errors: Sequence[FieldError]) -> None:
        self.errors = tuple(errors)
        super().__init__("; ".join(f"{e.field}: {e.detail}" for e in self.errors))


class InvalidQuery(InvalidRequest):
    """The query is empty or too long once it is in its normal form."""

    slug, title = "invalid-query", "The query cannot be rewritten"

    def __init__(self, detail: str, *, field: str = "query") -> None:
        super().__init__([FieldError(field, detail)])


class QueryTooLong(RequeryError):
    """A text has more tokens than the engine was started for."""

    status, slug, title = 422, "query-too-long", "The text has too many tokens"


class Unauthorized(RequeryError):
    """The API key is missing or unknown."""

    status, slug, title = 401, "unauthorized", "A valid key is needed"

    @property
    def headers(self) -> Mapping[str, str]:
        """Says how to prove it."""
        return {"WWW-Authenticate": 'Bearer realm="requery"'}


class Forbidden(RequeryError):
    """The caller may not do this."""

    status, slug, title = 403, "forbidden", "This is not allowed from here"


class TooManyRequests(RequeryError):
    """The caller makes more requests than it may.

    Args:
        detail: what there is too much of.
        wait_s: seconds after which it may try again.
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
    """The body has more bytes than the server takes."""

    status, slug, title = 413, "payload-too-large", "The body is too large"


class MalformedRequest(RequeryError):
    """What was sent is no HTTP request."""

    status, slug, title = 400, "malformed-request", "The request is not valid HTTP"


class RequestTimeout(RequeryError):
    """The request did not arrive whole within the time that the server gives it."""

    status, slug, title = 408, "request-timeout", "The request took too long to arrive"

    @property
    def headers(self) -> Mapping[str, str]:
        """The rest of the request may still be on its way: nothing can follow it."""
        return {"Connection": "close"}


class HeadersTooLarge(RequeryError):
    """The request line and the headers have more bytes than the server takes."""

    status, slug, title = 431, "headers-too-large", "The request headers are too large"


class UnsupportedMediaType(RequeryError):
    """The body is not declared as JSON."""

    status, slug, title = 415, "unsupported-media-type", "The body must be declared as JSON"


class UnknownVersion(RequeryError):
    """No model version of that name exists here."""

    status, slug, title = 404, "unknown-version", "No such model version"


class VersionNotLoaded(RequeryError):
    """The model version exists and is not being served."""

    status, slug, title = 409, "version-not-loaded", "The model version is not loaded"


class VersionInUse(RequeryError):
    """The model version cannot be unloaded: requests are routed to it."""

    status, slug, title = 409, "version-in-use", "The model version is in use"


class VersionDraining(RequeryError):
    """The model version is being unloaded, which must end before it is loaded again."""

    status, slug, title = 409, "version-draining", "The model version is being unloaded"


class LoadFailed(RequeryError):
    """The engine of a model version could not be started, or did not answer its first queries."""

    status, slug, title = 500, "version-load-failed", "The model version could not be loaded"


class InsufficientMemory(RequeryError):
    """The engine of a model version does not fit beside those that are loaded."""

    status, slug, title = 507, "insufficient-memory", "There is not enough memory for the version"


class _Unavailable(RequeryError):
    """Something that comes back: the caller may try again."""

    status = 503
    retry_after_s: ClassVar[int] = 1

    @property
    def headers(self) -> Mapping[str, str]:
        return {"Retry-After": str(self.retry_after_s)}


class Overloaded(_Unavailable):
    """The engine has as much to do as it can finish in time."""

    slug, title = "overloaded", "There is too much to do"


class ClientDisconnected(RequeryError):
    """The caller has hung up; the answer goes nowhere, and into the log."""

    status, slug, title = 499, "caller-left", "The caller has hung up"


class EngineUnavailable(_Unavailable):
    """The engine of a version cannot answer: it is loading, has died, or could not start."""

    slug, title = "engine-unavailable", "The engine is not available"


class NotReady(_Unavailable):
    """The process is alive, and its default version cannot answer."""

    slug, title = "not-ready", "The service is not ready"


class CacheUnavailable(_Unavailable):
    """The shared cache did not answer, so that a purge is not complete."""

    slug, title = "cache-unavailable", "The shared cache cannot be reached"


class TooManyConnections(_Unavailable):
    """As many connections are open as the server takes."""

    slug, title = "too-many-connections", "Too many connections are open"


class Stopping(_Unavailable):
    """The process has been told to stop, and could not wait for the answer."""

    slug, title = "stopping", "The service is stopping"


class DocumentStoreUnavailable(_Unavailable):
    """The shared control documents cannot be read or written just now."""

    slug, title = "control-unavailable", "The shared control documents cannot be reached"


class StaleRevision(RequeryError):
    """A control document was changed by someone else since the caller read it."""

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
    """A control document was written by a newer release, whose fields this one does not know."""

    status, slug, title = 409, "newer-schema", "The document is of a newer release"


class UnreadableDocument(RequeryError):
    """What is stored as a control document is none."""

    status, slug, title = 409, "unreadable-document", "The stored document cannot be read"


class PreconditionRequired(RequeryError):
    """The change replaces what others may have changed, and does not say what it was made from."""

    status, slug, title = 428, "precondition-required", "The header If-Match is required"


class UnknownOverride(RequeryError):
    """No override has that id."""

    status, slug, title = 404, "unknown-override", "No such override"


class OverrideConflict(RequeryError):
    """An override cannot be kept beside those that there are."""

    status, slug, title = 409, "override-conflict", "The override conflicts with others"


class DeadlineExceeded(RequeryError):
    """The deadline passed, and there is no part of an answer to give."""

    status, slug, title = 504, "deadline-exceeded", "The deadline passed"
