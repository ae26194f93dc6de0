"""How full an engine may be: Erlang's loss formula.

An engine has permits for a number of generations at a time. The service turns a shopper away if all
permits are taken, so an engine is a loss system.
"""

from __future__ import annotations

from scipy.optimize import brentq


def erlang_b(permits: int, load: float) -> float:
    """Share of arrivals that is turned away (M/G/c/c).

    Args:
        permits: generations at a time.
        load: arrivals per second times seconds of each, in erlangs.
    """
    blocked = 1.0
    for n in range(1, permits + 1):
        blocked = load * blocked / (n + load * blocked)
    return blocked


def most_load(permits: int, *, turned_away: float) -> float:
    """The load in erlangs at which a share ``turned_away`` of the arrivals finds no permit."""
    # Of a load at least 1 - permits / load is turned away.
    high = permits / (1 - turned_away)
    return float(brentq(lambda load: erlang_b(permits, load) - turned_away, 0.0, high))
