"""How many requests a second one caller may make."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.problems import problem
from service.errors import TooManyRequests
from service.resilience.rate_limit import RateLimiter
from service.security.auth import Auth, address_of
from service.telemetry.request_context import context_of

EXEMPT = frozenset({"/livez", "/readyz", "/metrics"})
"""What tells whether the service is well must not depend on how busy it is."""
_DEFAULT_BURST_S = 2.0


class RateLimitMiddleware:
    """Refuses the requests of a caller that makes too many.

    A request with a valid key counts for that key, any other for the address that it comes from.

    Args:
        app: the application inside.
        auth: tells callers apart.
        keys: tokens of keys, by name.
        addresses: tokens of addresses.
        exempt: paths that are not limited.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        auth: Auth,
        keys: RateLimiter,
        addresses: RateLimiter,
        exempt: frozenset[str] = EXEMPT,
    ) -> None:
        self._app = app
        self._exempt = exempt
        self._auth = auth
        self._keys = keys
        self._addresses = addresses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http" or scope["path"] in self._exempt:
            await self._app(scope, receive, send)
            return
        key = self._auth.caller(scope).key
        if key is not None:
            wait_s = self._keys.take(key.name)
        else:
            wait_s = self._addresses.take(address_of(scope))
        if not wait_s:
            await self._app(scope, receive, send)
            return
        self._auth.metrics.limited("address" if key is None else "key")
        error = TooManyRequests(
            "this caller sends more requests than it may; send fewer", wait_s=wait_s
        )
        context = context_of(scope)
        context.fields["problem"] = error.slug
        await problem(error, context.request_id)(scope, receive, send)


def buckets(per_s: float, burst: int | None) -> RateLimiter:
    """Token buckets for these settings.

    Args:
        per_s: requests a second.
        burst: requests at once; default: those of two seconds, at least one.
    """
    return RateLimiter(per_s=per_s, burst=burst or max(1, round(per_s * _DEFAULT_BURST_S)))
