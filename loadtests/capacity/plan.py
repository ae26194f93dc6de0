"""From what one replica does to a fleet: replicas, GPUs, Redis shards, cost."""

from __future__ import annotations

from math import ceil
from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field

from loadtests.capacity.popularity import Shares, hit_ratio, zipf
from loadtests.capacity.queueing import most_load


class Inputs(BaseModel):
    """What a plan is made from; the description of each says where its default is from.

    Raises:
        pydantic.ValidationError: a figure that cannot be.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    queries: Annotated[
        int, Field(ge=1, description="Different queries that come again. Assumed.")
    ] = 500_000
    exponent: Annotated[
        float, Field(gt=0, description="Of Zipf's law. Fitted to the Best Buy log.")
    ] = 1.06
    unseen: Annotated[
        float,
        Field(ge=0, le=1, description="Share of the searches that never come again. Assumed."),
    ] = 0.1
    ttl_s: Annotated[float, Field(gt=0, description="REQUERY_CACHE_TTL_S; its default.")] = (
        24 * 3600.0
    )
    cache_entries: Annotated[
        int, Field(ge=0, description="Room in Redis, in answers. Assumed.")
    ] = 250_000
    entry_bytes: Annotated[
        int, Field(ge=1, description="Of one answer in Redis, its key and overhead. Assumed.")
    ] = 2_000

    generations_per_s: Annotated[
        float,
        Field(
            gt=0,
            description="Of one replica in time. Measured: 3.93, CPU, 2 cores shared with the "
            "load generator. GPU: not measured, put your own figure.",
        ),
    ] = 3.93
    generation_s: Annotated[
        float,
        Field(
            gt=0,
            description="Of one generation while the engine is full: "
            "REQUERY_ADMISSION_TARGET_MS, which the limit keeps to; its default on a CPU.",
        ),
    ] = 1.4
    gpus_per_replica: Annotated[
        int, Field(ge=0, description="0 on CPUs. Nothing was measured on a GPU.")
    ] = 0
    turned_away: Annotated[
        float,
        Field(gt=0, lt=1, description="Share of the misses that may be turned away. Chosen."),
    ] = 0.01
    answers_per_s: Annotated[
        float, Field(gt=0, description="That one process can handle, hits mostly. Assumed.")
    ] = 500.0
    spare: Annotated[
        float, Field(ge=0, description="Replicas more than that, as a share: one is down. Chosen.")
    ] = 0.1

    shard_operations_per_s: Annotated[
        float, Field(gt=0, description="Of one Redis shard. Assumed.")
    ] = 50_000.0
    shard_bytes: Annotated[
        int, Field(ge=1, description="Memory of one Redis shard for answers. Assumed.")
    ] = 8 * 1024**3
    memory_hits: Annotated[
        float,
        Field(
            ge=0,
            le=1,
            description="Share of the hits that need no Redis. Assumed; it falls as "
            "traffic is spread over more replicas.",
        ),
    ] = 0.5

    replica_price_per_hour: Annotated[float, Field(ge=0, description="Your price. Assumed.")] = 0.10
    shard_price_per_hour: Annotated[float, Field(ge=0, description="Your price. Assumed.")] = 0.20

    @classmethod
    def read(cls, path: Path) -> Inputs:
        """From a YAML file of some of these.

        Raises:
            pydantic.ValidationError: a name or a figure that cannot be.
        """
        return cls.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})


class Fleet(BaseModel):
    """What some traffic needs.

    Attributes:
        hits: share of the searches that the cache answers.
        misses_per_s: generations begun.
        for_engines, for_answers: replicas that either needs, without the spare ones.
        bound: which of them decides.
        cost_per_million: of searches, in the currency of the prices.
    """

    searches_per_s: float
    hits: float
    misses_per_s: float
    for_engines: int
    for_answers: int
    replicas: int
    gpus: int
    shards: int
    bound: str
    cost_per_million: float


def replica_load(inputs: Inputs) -> float:
    """Misses a second that one replica takes, so that at most the chosen share is turned away.

    Its permits are the generations that it does at a time: rate times duration.
    """
    permits = max(1, round(inputs.generations_per_s * inputs.generation_s))
    # The load is in erlangs; each place finishes its part of the measured rate.
    per_permit = inputs.generations_per_s / permits
    return most_load(permits, turned_away=inputs.turned_away) * per_permit


def plan(inputs: Inputs, searches_per_s: float, shares: Shares | None = None) -> Fleet:
    """The fleet for a rate of searches.

    Args:
        inputs: figures of one replica, the cache, the prices.
        searches_per_s: at the busiest time.
        shares: of the queries; default: Zipf's law as the inputs say.
    """
    popular = zipf(inputs.queries, inputs.exponent) if shares is None else shares
    again = 1 - inputs.unseen
    hits = again * hit_ratio(
        popular,
        searches_per_s=searches_per_s * again,
        entries=inputs.cache_entries,
        ttl_s=inputs.ttl_s,
    )
    misses_per_s = searches_per_s * (1 - hits)
    for_engines = ceil(misses_per_s / replica_load(inputs))
    for_answers = ceil(searches_per_s / inputs.answers_per_s)
    replicas = max(2, ceil(max(for_engines, for_answers) * (1 + inputs.spare)))
    # Each miss and each hit that memory lacks is read; each miss is written too.
    operations = searches_per_s * hits * (1 - inputs.memory_hits) + 2 * misses_per_s
    shards = max(
        ceil(operations / inputs.shard_operations_per_s),
        ceil(inputs.cache_entries * inputs.entry_bytes / inputs.shard_bytes),
    )
    per_hour = replicas * inputs.replica_price_per_hour + shards * inputs.shard_price_per_hour
    return Fleet(
        searches_per_s=searches_per_s,
        hits=hits,
        misses_per_s=misses_per_s,
        for_engines=for_engines,
        for_answers=for_answers,
        replicas=replicas,
        gpus=replicas * inputs.gpus_per_replica,
        shards=shards,
        bound="engines" if for_engines >= for_answers else "answers",
        cost_per_million=per_hour / 3600 / searches_per_s * 1e6,
    )
