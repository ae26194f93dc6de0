"""The routing document: default version, weights, shadow traffic and the kill switch."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from service.control.documents import Document
from service.control.metrics import ControlMetrics
from service.control.store import DocumentStore

DOCUMENT = "routing"
"""Name of the document in the document store."""
SCHEMA = 1
"""Increased when older releases could no longer read the document."""
MAX_ARMS = 32
SHARE_TOLERANCE = 1e-6
"""How far the sum of the shares may be from 1."""

VersionName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Share = Annotated[float, Field(ge=0, le=1)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ShadowTraffic(_Part):
    """Requests that a candidate version answers too, in the background."""

    version: Annotated[VersionName, Field(description="The candidate.")]
    share: Annotated[Share, Field(description="Part of the requests, from 0 to 1.")]


class Kill(_Part):
    """The emergency switch, which overrides everything else."""

    version: Annotated[
        VersionName | None,
        Field(description="The one version that serves all requests; null: no rewrites at all."),
    ]
    reason: Annotated[
        str, Field(min_length=1, max_length=500, description="Why, for whoever reads it later.")
    ]


class RoutingPlan(_Part):
    """Where requests go: the body of ``PUT /routing``."""

    default: Annotated[
        VersionName, Field(description="Serves requests without unit_id, and all without weights.")
    ]
    weights: Annotated[
        dict[VersionName, Share],
        Field(
            max_length=MAX_ARMS,
            description="Share of each version in the requests with a unit_id and no pin; they "
            "sum to 1. Empty: all go to the default.",
            examples=[{"sft-1": 0.5, "grpo-1": 0.5}],
            # The pattern of the names alone would allow any others beside them.
            json_schema_extra={"additionalProperties": False},
        ),
    ]
    salt: Annotated[
        str,
        Field(
            min_length=1,
            max_length=64,
            description="Name of the experiment; another salt assigns all units anew.",
        ),
    ]
    shadow: Annotated[
        ShadowTraffic | None, Field(description="Traffic that a candidate version answers too.")
    ] = None

    @field_validator("weights")
    @classmethod
    def _whole(cls, weights: dict[str, float]) -> dict[str, float]:
        total = math.fsum(weights.values())
        if weights and abs(total - 1) > SHARE_TOLERANCE:
            raise ValueError(f"must sum to 1, and sum to {total:.6g}")
        return weights

    @field_validator("salt")
    @classmethod
    def _printable(cls, salt: str) -> str:
        if not salt.isprintable() or not salt.strip():
            raise ValueError("must be printable, on one line")
        return salt


class Routing(RoutingPlan):
    """The routing document."""

    kill: Kill | None = None

    @classmethod
    def parse(cls, body: dict[str, Any]) -> Routing:
        """Read a stored body.

        Raises:
            ValueError: it is not a routing document of this schema.
        """
        return cls.model_validate(body)

    def dump(self) -> dict[str, Any]:
        """The body to store."""
        return self.model_dump(mode="json")

    def versions(self) -> frozenset[str]:
        """Names of the versions that it sends requests to, shadow traffic included."""
        names = {self.default, *(name for name, share in self.weights.items() if share > 0)}
        if self.shadow is not None:
            names.add(self.shadow.version)
        if self.kill is not None and self.kill.version is not None:
            names.add(self.kill.version)
        return frozenset(names)

    def plan(self, plan: RoutingPlan) -> Routing:
        """``plan`` with the kill switch as it is here."""
        return Routing.model_validate({**plan.model_dump(), "kill": self.dump()["kill"]})

    def killed(self, kill: Kill | None) -> Routing:
        """The same plan with another kill switch."""
        return self.model_copy(update={"kill": kill})


def routing_document(
    store: DocumentStore, *, default: str, metrics: ControlMetrics
) -> Document[Routing]:
    """The document ``routing``.

    Args:
        store: where it is stored.
        default: the version that serves requests until the document is written.
        metrics: of all control documents.
    """
    return Document(
        store,
        DOCUMENT,
        schema=SCHEMA,
        parse=Routing.parse,
        initial=Routing(default=default, weights={}, salt="requery"),
        dump=Routing.dump,
        metrics=metrics,
    )
