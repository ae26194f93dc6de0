"""Who may change what the service does."""

from __future__ import annotations

import hmac
import ipaddress
import re
from urllib.parse import urlsplit

from pydantic import SecretStr
from starlette.requests import Request

from service.errors import Forbidden, Unauthorized

_AUTHOR_HEADER = "x-requery-author"
_AUTHOR = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._@+-]{0,63}")


class AdminGuard:
    """Lets a request through that carries the admin key.

    Without a key in the settings only callers on the same machine may change anything.

    Args:
        key: what must follow ``Authorization: Bearer``; ``None`` if none is set.
    """

    def __init__(self, key: SecretStr | None) -> None:
        self._key = key.get_secret_value().encode() if key is not None else None

    def check(self, request: Request) -> str:
        """The author's name for the audit trail: ``X-Requery-Author``, else ``admin``.

        Raises:
            Unauthorized: the key is missing or wrong.
            Forbidden: no key is set, and the caller is on another machine.
        """
        if self._key is None:
            if not _is_local(request):
                raise Forbidden(
                    "set REQUERY_ADMIN_KEY on the server to change it from another machine"
                )
            if _is_foreign(request):
                # Else any web page could, through the browser of whoever runs the service.
                raise Forbidden("this comes from a web page of another origin")
        else:
            scheme, _, given = request.headers.get("authorization", "").partition(" ")
            # Compared even if the scheme is wrong, so that the time taken tells nothing.
            same = hmac.compare_digest(given.strip().encode(), self._key)
            if not same or scheme.lower() != "bearer":
                raise Unauthorized("send the admin key as 'Authorization: Bearer <key>'")
        author = request.headers.get(_AUTHOR_HEADER, "").strip()
        return author if _AUTHOR.fullmatch(author) else "admin"


def _is_local(request: Request) -> bool:
    if request.client is None:  # a unix socket
        return True
    try:
        return ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


def _is_foreign(request: Request) -> bool:
    """Whether a browser sends this for a page that the service has not served."""
    origin = request.headers.get("origin")
    return origin is not None and urlsplit(origin).netloc != request.headers.get("host")
