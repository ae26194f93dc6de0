"""Nightly: a new version of the day's products, a tenth of the traffic if it is no worse.

    python examples/your_shop/refresh.py products.csv --out my-versions --name my-shop

adapts the products into ``my-shop-<day>``, compares it with the version before by the report's own
figures, loads it into a running service (``REQUERY_URL``, ``REQUERY_KEY``) that has the folder
among its ``REQUERY_MODEL_SOURCES``, and gives it a tenth of the traffic. ``--finish`` makes it the
default for all, once its orders are as good, and unloads the old one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from datetime import UTC, datetime
from typing import Any

import httpx

MOST_HARMED = 0.02
SHARE = 0.1


def adapt(products: str, name: str, out: str) -> dict[str, Any]:
    """The record of the new version; the same products give the version that is there."""
    command = [sys.executable, "-m", "service.cli", "adapt", "--products", products, "--name", name]
    done = subprocess.run(  # noqa: S603 - our own command
        [*command, "--out", out, "--json"], stdout=subprocess.PIPE, text=True, check=True
    )
    record: dict[str, Any] = json.loads(done.stdout)
    return record


def worse(record: dict[str, Any]) -> str | None:
    """Why the new version should not go live; ``None`` if nothing speaks against it."""
    if "trial" not in record:
        return "nothing was tried"
    figures = record["trial"]["figures"]
    if figures["adapted"]["harmed"][0] > MOST_HARMED:
        return f"{figures['adapted']['harmed'][0]:.1%} of the queries are harmed"
    if figures["difference"]["gain"][2] < 0:
        return "its gain in recall is lower than that of the version that it was made from"
    return None


def give_traffic(service: httpx.Client, name: str, share: float) -> str:
    """Load a version and route ``share`` of the units to it; 1 makes it the default.

    Returns:
        the default version from before.
    """
    load = service.post(f"/versions/{name}/load", params={"wait": "true"}, timeout=600)
    load.raise_for_status()
    now = service.get("/routing").raise_for_status()
    routing = now.json()
    before = str(routing["default"])
    if share >= 1:
        wanted = {"default": name, "salt": routing["salt"]}
    else:
        weights = {before: 1 - share, name: share}
        wanted = {"default": before, "salt": routing["salt"], "weights": weights}
    # The tag of the revision: a change by somebody else in between is refused.
    tag = {"if-match": now.headers["etag"]}
    service.put("/routing", json=wanted, headers=tag).raise_for_status()
    return before


def main(arguments: list[str] | None = None) -> int:
    """Run the command; 1 if the new version gets no traffic."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("products")
    parser.add_argument("--out", default="my-versions")
    parser.add_argument("--name", default="my-shop")
    parser.add_argument("--finish", action="store_true")
    options = parser.parse_args(arguments)
    name = f"{options.name}-{datetime.now(UTC):%Y%m%d}"
    record = adapt(options.products, name, options.out)
    if reason := worse(record):
        print(f"{name} gets no traffic: {reason}; read {options.out}/{name}-report/report.html")
        return 1
    key = os.environ.get("REQUERY_KEY")
    with httpx.Client(
        base_url=os.environ.get("REQUERY_URL", "http://localhost:8000"),
        headers={"authorization": f"Bearer {key}"} if key else {},
    ) as service:
        before = give_traffic(service, name, 1.0 if options.finish else SHARE)
        if options.finish and before != name:
            service.post(f"/versions/{before}/unload").raise_for_status()
    print(f"{name} has {'all' if options.finish else format(SHARE, '.0%')} of the traffic")
    return 0


if __name__ == "__main__":
    sys.exit(main())
