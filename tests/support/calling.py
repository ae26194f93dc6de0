"""Routes in an application of their own, and clients that call an application in process."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from fastapi import APIRouter, FastAPI
from prometheus_client import CollectorRegistry

from service.api import problems
from service.api.metrics import ApiMetrics
from service.api.middleware import RequestContextMiddleware


def mounted(*routers: APIRouter, log_requests: bool = False) -> FastAPI:
    """An application of these routes, with problems and request ids as in the whole one."""
    app = FastAPI()
    for router in routers:
        app.include_router(router)
    problems.install(app)
    metrics = ApiMetrics(CollectorRegistry())
    app.add_middleware(RequestContextMiddleware, metrics=metrics, log_requests=log_requests)
    return app


@asynccontextmanager
async def calling(
    app: FastAPI, address: str = "127.0.0.1", key: str | None = None, **headers: str
) -> AsyncIterator[httpx.AsyncClient]:
    """A client at ``address``, with ``key`` and other headers in each request."""
    if key is not None:
        headers["authorization"] = f"Bearer {key}"
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    transport = httpx.ASGITransport(app=app, client=(address, 1))
    async with httpx.AsyncClient(
        transport=transport, base_url="http://test", headers=sent
    ) as client:
        yield client
