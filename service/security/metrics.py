"""Metrics of API keys and of refused requests."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, Counter

from service.security.api_keys import ADMIN, SCOPES

Need = Literal["rewrite", "admin", "metrics", "any"]
"""What a route asks of a key: a scope, or only that it is valid."""
Reason = Literal["missing", "unknown", "revoked", "expired", "scope", "remote", "origin"]
Limit = Literal["key", "address", "failures"]


class KeyMetrics:
    """Uses of keys, and readings of the keys file.

    Args:
        registry: where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        reads = Counter(
            "requery_api_keys_file_reads",
            "Readings of the API keys file after a change, by result; after a refusal the last "
            "good keys stay in force",
            ["result"],
            registry=registry,
        )
        self._reads = {result: reads.labels(result) for result in ("ok", "refused")}
        self._uses = Counter(
            "requery_api_key_uses",
            "Requests let in, by the name of their key: shows whether a key is still in use before "
            "it is revoked",
            ["key"],
            registry=registry,
        )
        self._uses_of: dict[str, Counter] = {}

    def read(self, result: str) -> None:
        """Count one reading of the file: ``ok`` or ``refused``."""
        self._reads[result].inc()

    def used(self, name: str) -> None:
        """Count one request that the key of this name let in."""
        counter = self._uses_of.get(name)
        if counter is None:
            counter = self._uses_of[name] = self._uses.labels(name)
        counter.inc()

    def show(self, names: Iterable[str]) -> None:
        """Show the keys of these names and no others, so that former names do not pile up."""
        names = set(names)
        for gone in self._uses_of.keys() - names:
            del self._uses_of[gone]
            self._uses.remove(gone)
        for name in names - self._uses_of.keys():
            self._uses_of[name] = self._uses.labels(name)


class AuthMetrics:
    """Refused requests: by need and reason, or because there were too many.

    Args:
        registry: where they are registered.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        refusals = Counter(
            "requery_auth_refusals",
            "Requests refused, by the scope that they needed and by reason: missing, unknown, "
            "revoked or expired (of the key), scope (the key has another), and without keys "
            "remote (another machine) or origin (a web page)",
            ["scope", "reason"],
            registry=registry,
        )
        of_keys: tuple[Reason, ...] = ("missing", "unknown", "revoked", "expired")
        possible: dict[str, tuple[Reason, ...]] = dict.fromkeys(SCOPES, (*of_keys, "scope"))
        possible["any"] = of_keys
        possible[ADMIN] += ("remote", "origin")
        self._refusals = {
            (need, reason): refusals.labels(need, reason)
            for need, reasons in possible.items()
            for reason in reasons
        }
        limited = Counter(
            "requery_rate_limited",
            "Requests refused because there were too many: of their key, without a valid key of "
            "their address, or of invalid keys from their address (failures)",
            ["by"],
            registry=registry,
        )
        limits: tuple[Limit, ...] = get_args(Limit)
        self._limited = {by: limited.labels(by) for by in limits}

    def refused(self, need: Need, reason: Reason) -> None:
        """Count one request that may not do what it asked for."""
        self._refusals[need, reason].inc()

    def limited(self, by: Limit) -> None:
        """Count one request above a limit."""
        self._limited[by].inc()
