"""Rate limits by API key or address."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.problems import problem
from service.errors import TooManyRequests
from service.resilience.rate_limit import RateLimiter
from service.security.auth import Auth, address_of
from service.telemetry.request_context import context_of

EXEMPT = frozenset(
    prefix + path for prefix in ("", "/v1") for path in ("/livez", "/readyz", "/metrics")
)
"""Health checks and metrics must work under load."""
_DEFAULT_BURST_S = 2.0


class RateLimitMiddleware:
    """Rejects requests over the rate limit of their key, or of their address without a valid key.

    Args:
        app: the application inside.
        auth: identifies the client.
        keys: limits by name of the key.
        addresses: limits by address.
        exempt: paths without a limit.
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
    """The rate limiter of these settings.

    Args:
        per_s: requests per second.
        burst: requests at once; default: two seconds' worth, at least one.
    """
    return RateLimiter(per_s=per_s, burst=burst or max(1, round(per_s * _DEFAULT_BURST_S)))
