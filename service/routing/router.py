"""Assigns requests to versions, and units of an experiment to arms.

**Assignment** is weighted rendezvous hashing. A unit (a shopper, a session) and the salt give each
arm *i* of share *w_i* > 0 a number *u_i*, uniform in (0, 1) and independent between arms, units and
salts, and the unit goes to the arm with the least

    -ln(u_i) / w_i

Each of these is exponential with rate *w_i*, so arm *i* has the least with probability *w_i* (the
shares sum to 1). Nothing is stored: every replica always gives a unit the same arm.

**Which units move when the shares change.** A unit goes from arm *i* to arm *j* only if *j*'s share
grew by a larger factor than *i*'s: ``w_j'/w_j > w_i'/w_i``. Then:

- of two arms, units go only from the one whose share fell to the one whose share rose, and no more
  of them than must: 50/50 to 60/40 moves 10 % of the units in expectation;
- an arm that is added takes its units from all others, and an arm that is removed gives its units
  to all others, in proportion; no other unit moves, provided that the others keep their shares
  relative to each other (50/50 to 40/40/20);
- in general a unit stays with probability ``sum over i of 1 / sum over j of max(w_j/w_i,
  w_j'/w_i')`` (terms with w_i or w_i' = 0 are 0). With three arms or more, moving share from one
  arm to another also moves a few units of the others: 0.5/0.3/0.2 to 0.6/0.3/0.1 moves 12.7 % of
  the units, where 10 % would do. To move few units, change the shares of two arms at a time by
  little, or all in proportion.

A new salt assigns every unit anew, independently of its arm under another salt.

References: Thaler and Ravishankar, *Using name-based mappings to increase hit rates*, 1998
(rendezvous hashing); Schindelhauer and Schomaker, *Weighted distributed hash tables*, 2005 (the
logarithm); Moulton and Jiang, *Maximally consistent sampling and the Jaccard index of probability
distributions*, 2018 (the share of units that stay).
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Literal, Protocol

from service.routing.document import Kill, Routing, ShadowTraffic

Why = Literal["pin", "unit", "default", "kill"]


@dataclass(frozen=True, slots=True)
class Assignment:
    """The version of a request, and why."""

    version: str
    arm: str | None
    """The arm of the unit; ``None`` if the request was not assigned by its unit."""
    why: Why
    off: bool = False
    """Whether the kill switch turns rewrites off."""
    revision: int = 0
    """Of the routing document; 0 if it was never written."""
    salt: str = ""
    """The experiment of the arm; empty if there is no arm."""


class LiveRouting(Protocol):
    """The routing document in force: a :class:`service.control.documents.Document`."""

    @property
    def value(self) -> Routing:
        """The document; another object after each change."""

    @property
    def revision(self) -> int:
        """Its revision."""


class Router:
    """Assigns requests to versions, without I/O, clock or memory of a unit.

    In order: this replica's kill switch, the document's, the pin, the weights, the default.

    Args:
        routing: the document; a change takes effect with the next request.
    """

    def __init__(self, routing: LiveRouting) -> None:
        self._routing = routing
        self._local_kill: Kill | None = None
        self._table = _Table(routing.value, routing.revision, None)

    def assign(self, *, pin: str | None, unit_id: str | None) -> Assignment:
        """The version for one request; a few microseconds.

        Args:
            pin: the version that the client asks for.
            unit_id: any text, compared code point by code point. An empty one counts as none,
                because all clients that send it would be one unit.
        """
        table = self._now()
        if table.kill is not None:
            return table.kill
        if pin is not None:
            return Assignment(pin, None, "pin", revision=table.revision)
        if not unit_id or not table.arms:
            return table.default
        return table.assign(unit_id)

    def shadow(self) -> ShadowTraffic | None:
        """The shadow traffic that is configured now; none while a kill switch is on."""
        table = self._now()
        return table.routing.shadow if table.kill is None else None

    def versions(self) -> frozenset[str]:
        """Names of the versions that requests may be sent to now, shadow traffic included."""
        names = self._routing.value.versions()
        kill = self._local_kill
        return names if kill is None or kill.version is None else names | {kill.version}

    @property
    def local_kill(self) -> Kill | None:
        """The kill switch of this replica alone, if it is on."""
        return self._local_kill

    def kill_locally(self, kill: Kill | None) -> None:
        """Set or reset the kill switch of this replica alone, from the next request on.

        It works without the shared document, is invisible to other replicas, and ends with the
        process.
        """
        self._local_kill = kill

    def _now(self) -> _Table:
        table = self._table
        routing, revision, kill = self._routing.value, self._routing.revision, self._local_kill
        same = table.routing is routing and table.revision == revision
        if not same or table.local_kill is not kill:
            table = self._table = _Table(routing, revision, kill)
        return table


class _Table:
    """One revision of the document, prepared for :meth:`Router.assign`."""

    def __init__(self, routing: Routing, revision: int, local_kill: Kill | None) -> None:
        self.routing = routing
        self.revision = revision
        self.local_kill = local_kill
        self.default = Assignment(routing.default, None, "default", revision=revision)
        self.kill: Assignment | None = None
        kill = local_kill or routing.kill
        if kill is not None:
            version = kill.version
            self.kill = Assignment(
                version or routing.default, None, "kill", off=version is None, revision=revision
            )
        self.arms = [
            (_hasher(routing.salt, name), 1 / share, self._assignment(name))
            for name, share in sorted(routing.weights.items())
            if share > 0
        ]

    def assign(self, unit_id: str) -> Assignment:
        """The arm of a unit."""
        if len(self.arms) == 1:
            return self.arms[0][2]
        unit = unit_id.encode("utf-8", "surrogatepass")
        best, least = self.default, math.inf
        for hasher, inverse_share, assignment in self.arms:
            score = -math.log(_uniform(hasher, unit)) * inverse_share
            if score < least:
                best, least = assignment, score
        return best

    def _assignment(self, name: str) -> Assignment:
        return Assignment(name, name, "unit", revision=self.revision, salt=self.routing.salt)


def _hasher(salt: str, version: str) -> hashlib.blake2b:
    """A hash of everything except the unit; salts and names of versions contain no NUL."""
    prefix = f"requery.routing.1\0{salt}\0{version}\0"
    return hashlib.blake2b(prefix.encode("utf-8", "surrogatepass"), digest_size=8)


def _uniform(hasher: hashlib.blake2b, unit: bytes) -> float:
    """A number in the open interval (0, 1)."""
    own = hasher.copy()
    own.update(unit)
    # 52 bits and a half: exact in a float, and never rounded to 1.
    return ((int.from_bytes(own.digest(), "big") >> 12) + 0.5) / (1 << 52)
