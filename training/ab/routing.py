"""Routing of the running service: arms, their shares, and the assignment of units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx

from service.routing.document import Routing, RoutingPlan
from service.routing.router import Router
from training.ab.errors import ExperimentError

TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Plan:
    """The routing as it was read.

    Attributes:
        value: the document.
        revision: of the document.
        shares: arm -> its share of the units that ask; they sum to 1.
    """

    value: Routing
    revision: int
    shares: Mapping[str, float]

    def arm(self, unit: str) -> str:
        """The version that the service assigns a unit to."""
        return Router(self).assign(pin=None, unit_id=unit).version


async def read_routing(url: str, key: str | None) -> Plan:
    """``GET /routing`` of the service.

    Raises:
        ExperimentError: it is not there, wants a key, or its kill switch is on.
    """
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False) as client:
            answer = await client.get(f"{url.rstrip('/')}/routing", headers=headers)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ExperimentError(
            f"no service answers at {url} ({type(error).__name__}: {error}); start one "
            "(make serve) or name it with --url"
        ) from error
    if answer.status_code in (401, 403):
        raise ExperimentError(
            f"the service at {url} wants a key that may ask for rewrites; put it into REQUERY_KEY"
        )
    try:
        return plan_of(answer.json())
    except (ValueError, KeyError, TypeError) as error:
        raise ExperimentError(
            f"{url}/routing does not answer as Requery does (status {answer.status_code}); "
            "is --url right?"
        ) from error


def plan_of(content: dict[str, Any]) -> Plan:
    """The answer of ``GET /routing``.

    Raises:
        ValueError, KeyError, TypeError: it is no such answer.
        ExperimentError: a kill switch is on.
    """
    if content.get("kill") or content.get("local_kill"):
        raise ExperimentError(
            "a kill switch of the service is on, so there are no arms; see GET /routing"
        )
    known = {name: content[name] for name in RoutingPlan.model_fields if name in content}
    routing = Routing.model_validate(known)
    shares = {name: share for name, share in routing.weights.items() if share > 0}
    return Plan(routing, int(content.get("revision", 0)), shares or {routing.default: 1.0})
