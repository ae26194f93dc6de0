"""``python -m loadtests.capacity``: fleets for your traffic, and the hit ratio by cache size."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from pydantic import ValidationError

from loadtests.capacity.plan import Inputs, plan, replica_load
from loadtests.capacity.popularity import (
    Shares,
    fitted_exponent,
    hit_ratio,
    of_log,
    read_log,
    replayed,
    zipf,
)

app = typer.Typer(add_completion=False)
_EPILOG = "\n\n".join(
    ["Figures:"]
    + [
        f"{name}: {field.description} [{field.default}]"
        for name, field in Inputs.model_fields.items()
    ]
)
RATES = (1_000.0, 10_000.0, 100_000.0)
_PARTS = (0.001, 0.01, 0.03, 0.1, 0.3, 1.0)
"""Cache sizes that are shown, as parts of the different queries."""

_COLUMNS = (
    "searches/s", "hits", "misses/s", "replicas for engines", "for answers", "replicas", "GPUs",
    "Redis shards", "cost of a million",
)  # fmt: skip


def _with(figures: list[str]) -> dict[str, str]:
    """Changed figures, of ``name=value``."""
    pairs = [one.partition("=") for one in figures]
    for name, sign, _ in pairs:
        if not sign:
            raise typer.BadParameter(f"{name!r} is not of the form name=value")
    return {name: value for name, _, value in pairs}


@app.command(epilog=_EPILOG)
def capacity(
    inputs: Annotated[Path | None, typer.Option(help="YAML file of the figures below.")] = None,
    figure: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="One of them; may be repeated."),
    ] = None,
    rate: Annotated[
        list[float] | None, typer.Option(min=0.001, help="Searches a second; may be repeated.")
    ] = None,
    log: Annotated[
        list[Path] | None,
        typer.Option(help="CSV file of searches, for its frequencies; may be repeated."),
    ] = None,
    column: Annotated[str, typer.Option(help="Of the log: the query.")] = "query",
    time: Annotated[str | None, typer.Option(help="Of the log: when it was asked.")] = None,
) -> None:
    """Replicas, Redis shards and cost for rates of searches; hits by size of the cache.

    What was not measured is assumed, and says so: put your own figures.
    """
    try:
        base = Inputs() if inputs is None else Inputs.read(inputs)
        chosen = Inputs.model_validate(base.model_dump() | _with(figure or []))
        lines = [] if not log else read_log(log, column=column, time=time)
    except (OSError, ValidationError) as error:
        raise typer.BadParameter(str(error)) from None
    shares = None
    if lines:
        shares = of_log(lines)
        _say(_of_the_log(lines, shares))
    _say(_sizes(chosen, shares))
    _say(_fleets(chosen, rate or RATES, shares))


def _say(lines: Sequence[str]) -> None:
    typer.echo("\n".join(lines) + "\n")


def _of_the_log(log: Sequence[str], shares: Shares) -> list[str]:
    exponent = fitted_exponent(shares)
    law = zipf(len(shares), exponent)
    lines = [
        f"{len(log):,} searches, {len(shares):,} different queries; Zipf exponent {exponent}",
        "",
        "| entries | hits in order, empty at first | by Che, its frequencies | by Che, Zipf |",
        "|---|---|---|---|",
    ]
    for part in _PARTS:
        entries = max(1, round(part * len(shares)))
        che = [hit_ratio(one, searches_per_s=1.0, entries=entries) for one in (shares, law)]
        lines.append(
            f"| {entries:,} | {replayed(log, entries):.1%} | {che[0]:.1%} | {che[1]:.1%} |"
        )
    return lines


def _sizes(inputs: Inputs, shares: Shares | None) -> list[str]:
    popular = zipf(inputs.queries, inputs.exponent) if shares is None else shares
    again = 1 - inputs.unseen
    lines = [
        "| entries | " + " | ".join(f"hits at {rate:,.0f}/s" for rate in RATES) + " |",
        "|---" * (len(RATES) + 1) + "|",
    ]
    for part in _PARTS:
        entries = max(1, round(part * len(popular)))
        ratios = [
            again
            * hit_ratio(popular, searches_per_s=rate * again, entries=entries, ttl_s=inputs.ttl_s)
            for rate in RATES
        ]
        lines.append(f"| {entries:,} | " + " | ".join(f"{one:.1%}" for one in ratios) + " |")
    return lines


def _fleets(inputs: Inputs, rates: Sequence[float], shares: Shares | None) -> list[str]:
    lines = [
        f"One replica takes {replica_load(inputs):.2f} misses/s, {inputs.turned_away:.1%} refused.",
        "",
        f"| {' | '.join(_COLUMNS)} |",
        "|---" * len(_COLUMNS) + "|",
    ]
    for rate in rates:
        fleet = plan(inputs, rate, shares)
        gpus = f"{fleet.gpus:,}" if inputs.gpus_per_replica else "-"
        lines.append(
            f"| {rate:,.0f} | {fleet.hits:.1%} | {fleet.misses_per_s:,.0f} "
            f"| {fleet.for_engines:,} | {fleet.for_answers:,} | {fleet.replicas:,} | {gpus} "
            f"| {fleet.shards:,} | {fleet.cost_per_million:.2f} |"
        )
    return lines
