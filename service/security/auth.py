"""Authentication and authorisation: by API key, or without keys by the caller's machine."""

from __future__ import annotations

import ipaddress
import re
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import urlsplit

import structlog
from starlette.requests import Request
from starlette.types import Scope

from service.config.settings import Settings
from service.errors import Forbidden, TooManyRequests, Unauthorized
from service.resilience.rate_limit import RateLimiter
from service.security.api_keys import ADMIN, Key
from service.security.keyring import KeyRing
from service.security.metrics import AuthMetrics, Need, Reason
from service.telemetry.request_context import context_of

_log = structlog.get_logger(component="auth")

FAILURES_PER_S = 10.0
"""Invalid keys taken from one address."""
FAILURES_BURST = 20
MAX_AUTHOR_CHARS = 64
"""Longest author's name that an override can store."""

_CALLER = "requery.caller"
_AUTHOR_HEADER = "x-requery-author"
_AUTHOR = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@+-]{0,63}")
_FORWARDED = {b"forwarded", b"x-forwarded-for", b"x-real-ip"}


@dataclass(slots=True)
class Caller:
    """The sender of a request, as far as the request proves it.

    Attributes:
        key: the key of the request, if it is valid.
        reason: why there is no valid key.
        name: of the key, even if it is revoked or expired.
        wait_s: seconds until the address may try a key again, because it has tried too many
            invalid ones; 0 if it may now.
    """

    key: Key | None = None
    reason: Reason = "missing"
    name: str | None = None
    wait_s: float = 0.0


_NOBODY = Caller()


class Auth:
    """Identifies callers, and makes the guards of routes.

    Args:
        keys: the keys in force.
        metrics: counts refusals.
        failures: limits invalid keys by address.
        on_use: called with the name of each key that lets a request in.
        clock: seconds since 1970.
    """

    def __init__(
        self,
        keys: KeyRing,
        metrics: AuthMetrics,
        *,
        failures: RateLimiter | None = None,
        on_use: Callable[[str], None] = lambda _name: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.keys = keys
        self.metrics = metrics
        self.on_use = on_use
        if failures is None:
            failures = RateLimiter(per_s=FAILURES_PER_S, burst=FAILURES_BURST)
        self._failures = failures
        self._clock = clock

    def guard(self, need: Need) -> Guard:
        """The guard of routes that need ``need``."""
        return Guard(self, need)

    def caller(self, scope: Scope) -> Caller:
        """The caller of a request; identified once for each request."""
        if not self.keys.configured:
            return _NOBODY
        known = scope.get(_CALLER)
        if isinstance(known, Caller):
            return known
        caller = scope[_CALLER] = self._identify(scope)
        return caller

    def _identify(self, scope: Scope) -> Caller:
        given = _bearer(scope)
        if not given:
            return _NOBODY
        key = self.keys.find(given)
        reason: Reason | None = "unknown" if key is None else key.fault(self._clock())
        name = None if key is None else key.name
        if reason is not None:
            return Caller(None, reason, name, self._failures.take(address_of(scope)))
        assert key is not None  # noqa: S101 - for the type checker
        # An address that guesses keys must not learn that it has found an admin key. Other keys go
        # on working: the address may be a proxy's, and a wrong key must not stop all rewrites.
        wait_s = self._failures.wait(address_of(scope)) if "admin" in key.scopes else 0.0
        return Caller(key, name=name, wait_s=wait_s)


class Guard:
    """Lets requests through that are allowed to use a route.

    With a keys file every request needs a valid key with the right scope; with the admin key alone
    only routes that need ``admin``. Without keys, those are for callers on the same machine, and
    all other routes are open.

    Args:
        auth: identifies callers.
        need: what the route needs.
    """

    def __init__(self, auth: Auth, need: Need) -> None:
        self._auth = auth
        self._need = need

    def check(self, request: Request) -> str:
        """The author's name for the audit trail.

        It is the key's name and, after a slash, ``X-Requery-Author``; without keys the header
        alone, else ``admin``. Routes that do not need ``admin`` have no audit trail: there it is
        the key's name, or empty.

        Raises:
            Unauthorized: the API key is missing, unknown, revoked or expired.
            Forbidden: the key has other scopes; or there are no keys, and the caller is on another
                machine, or is a web page of another origin.
            TooManyRequests: the address has tried too many invalid keys.
        """
        keys = self._auth.keys
        if self._need == ADMIN:
            if not keys.configured:
                self._require_operator_here(request)
                return _author(request) or ADMIN
        elif not keys.guards_all:
            return ""
        caller = self._auth.caller(request.scope)
        key = caller.key
        fields = context_of(request.scope).fields
        if caller.name is not None:
            fields["key"] = caller.name
        if key is None:
            self._count(request, caller.reason)
        if caller.wait_s:
            fields["client"] = _host(request.scope)
            self._auth.metrics.limited("failures")
            raise TooManyRequests(
                "too many invalid keys were tried from this address",
                wait_s=caller.wait_s,
            )
        if key is None:
            raise Unauthorized("send a valid key as 'Authorization: Bearer <key>'")
        if self._need != "any" and self._need not in key.scopes:
            self._count(request, "scope")
            raise Forbidden(f"this needs a key with the scope {self._need!r}")
        self._auth.on_use(key.name)
        author = _author(request) if self._need == ADMIN else None
        return f"{key.name}/{author}"[:MAX_AUTHOR_CHARS] if author else key.name

    def _require_operator_here(self, request: Request) -> None:
        if not _is_local(request.scope):
            self._count(request, "remote")
            raise Forbidden(
                "set REQUERY_API_KEYS_FILE or REQUERY_ADMIN_KEY on the server to do this from "
                "another machine, or through a proxy"
            )
        if _is_foreign(request):
            # Else any web page could do so through a browser on this machine.
            self._count(request, "origin")
            raise Forbidden(
                "without keys this must not come from a web page of another origin, or by a "
                "public name of this machine"
            )

    def _count(self, request: Request, reason: Reason) -> None:
        self._auth.metrics.refused(self._need, reason)
        context_of(request.scope).fields.update(refused=reason, client=_host(request.scope))


def require_keys(settings: Settings) -> None:
    """Refuse to listen on a public address without keys, unless the settings allow it.

    Raises:
        ValueError: there are no keys, the address is not loopback, and the settings do not allow
            callers without keys.
    """
    if settings.admin_key is not None or settings.api_keys_file is not None:
        return
    if not _reaches_out(settings.host):
        return
    if settings.serve_without_keys != "to-anyone":
        raise ValueError(
            f"{settings.host or 'every address'} can be reached from other machines, and there are "
            "no keys: set REQUERY_API_KEYS_FILE ('requery keys new' makes a key) or "
            "REQUERY_ADMIN_KEY, listen on 127.0.0.1, or say REQUERY_SERVE_WITHOUT_KEYS=to-anyone"
        )
    _log.warning(
        "serving_without_keys",
        host=settings.host,
        detail="everybody who can reach this address gets rewrites; only callers on this machine "
        "may change anything",
    )


def address_of(scope: Scope) -> str:
    """The address for rate limits of callers without a key; of IPv6 its /64 network."""
    host = _host(scope)
    return host if host.count(".") == 3 and ":" not in host else _network(host)


@lru_cache(maxsize=4096)
def _network(host: str) -> str:
    address = _ip(host)
    if isinstance(address, ipaddress.IPv6Address):
        # The owner of one IPv6 address usually has all addresses of its /64 network.
        return str(ipaddress.ip_network((address, 64), strict=False))
    return host if address is None else str(address)


def _host(scope: Scope) -> str:
    client = scope.get("client")
    return str(client[0]) if client is not None else "unix"


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _bearer(scope: Scope) -> bytes:
    """The key in ``Authorization: Bearer <key>``; empty if there is none."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, given = bytes(value).strip().partition(b" ")
            return given.strip() if scheme.lower() == b"bearer" else b""
    return b""


def _author(request: Request) -> str | None:
    author = request.headers.get(_AUTHOR_HEADER, "").strip()
    return author if _AUTHOR.fullmatch(author) else None


def _is_local(scope: Scope) -> bool:
    """Whether the caller is on this machine, and is not a proxy for another."""
    if any(name in _FORWARDED for name, _ in scope["headers"]):
        return False
    if scope.get("client") is None:  # a unix socket
        return True
    address = _ip(_host(scope))
    return address is not None and address.is_loopback


def _is_foreign(request: Request) -> bool:
    """Whether the request may come from a web page that the service has not served."""
    host = request.headers.get("host", "")
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        return True
    # A web page's own name may resolve to this machine: then origin and host agree.
    return _is_public_name(host)


def _is_public_name(host: str) -> bool:
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:
        return True
    return "." in name and not name.endswith(".localhost") and _ip(name) is None


def _reaches_out(host: str) -> bool:
    """Whether other machines can reach what listens on ``host``."""
    try:
        found = socket.getaddrinfo(
            host or None, 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError:
        return False  # binding the address will fail with its own message
    addresses = [_ip(str(address[0])) for *_, address in found]
    return not all(address is not None and address.is_loopback for address in addresses)
