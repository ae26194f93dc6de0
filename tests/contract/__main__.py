"""The long run: ``python -m tests.contract --requests 20000``; ends with a summary in JSON.

Each round sends another share of the corpus, in every place of every operation, and requests that
schemathesis makes of the OpenAPI document. It ends once enough has been sent, or time is up.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter

from tests.contract.campaign import Campaign
from tests.contract.subject import running

_ROUNDS = 12
"""Shares that the corpus is cut into."""


def main() -> int:
    """Exit status: 0 without failures, 1 with some, 2 if time was up before enough was sent."""
    parser = argparse.ArgumentParser(prog="python -m tests.contract", description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000, help="at least so many")
    parser.add_argument("--seconds", type=float, default=3600.0, help="at most so long")
    parser.add_argument("--examples", type=int, default=25, help="generated in each round")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of what is generated")
    options = parser.parse_args()
    started = time.monotonic()
    ends = started + float(options.seconds)

    def late() -> bool:
        return time.monotonic() > ends

    with running() as subject:
        campaign = Campaign(subject, over=late)
        list(campaign.samples())
        for number in range(sys.maxsize):
            share = number % _ROUNDS
            campaign.boundaries(stride=_ROUNDS, offset=share)
            campaign.generated(options.examples, number=options.seed + number)
            campaign.hostile_bodies(stride=_ROUNDS, offset=share)
            campaign.hostile_values(stride=_ROUNDS * 4, offset=share * 4 + number // _ROUNDS)
            campaign.hostile_headers(stride=_ROUNDS * 8, offset=share * 8 + number // _ROUNDS)
            sys.stderr.write(f"{subject.requests} requests, {len(campaign.failures)} failures\n")
            if late() or subject.requests >= options.requests:
                break
    classes: Counter[str] = Counter()
    for status, count in campaign.statuses.items():
        classes[f"{status // 100}xx"] += count
    summary = {
        "requests": subject.requests,
        "operations": len(campaign.operations),
        "by_class": dict(sorted(classes.items())),
        "by_status": {str(k): v for k, v in sorted(campaign.statuses.items())},
        "seconds": round(time.monotonic() - started, 1),
        "seed": options.seed,
        "failures": campaign.failures,
    }
    print(json.dumps(summary, indent=2))  # noqa: T201 - what it is for
    if campaign.failures:
        return 1
    return 2 if subject.requests < options.requests else 0


if __name__ == "__main__":
    sys.exit(main())
