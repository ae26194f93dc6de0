"""JSON responses that no cache may keep."""

from __future__ import annotations

from collections.abc import Mapping

import orjson
from starlette.responses import Response

NO_STORE = {"cache-control": "no-store"}


def json_response(
    content: object, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """``content`` as JSON, with ``headers`` in addition to ``cache-control``."""
    return Response(
        orjson.dumps(content),
        status_code=status,
        headers={**NO_STORE, **(headers or {})},
        media_type="application/json",
    )
