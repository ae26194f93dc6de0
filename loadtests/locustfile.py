"""Shoppers for locust, for people who want to watch a service under load in a browser.

    pip install locust
    PYTHONPATH=. locust -f loadtests/locustfile.py --host http://127.0.0.1:8000

Locust waits for an answer before a user asks again, so a slow service gets less load and looks
better than it is: for figures use ``python -m loadtests.bench sweep``, which does not wait. Unlike
that one it sends load wherever ``--host`` says: only to what is yours.
"""

from __future__ import annotations

import random

from locust import HttpUser, between

from loadtests.queries import Queries, known_queries

_KNOWN, _SOURCE = known_queries()
_DEADLINE_MS = 2000
_USEFUL = frozenset({"ok", "none", "partial"})


class Shopper(HttpUser):  # type: ignore[misc] # locust is not installed where types are checked
    """Sends mostly queries that others have sent, and now and then one that nobody has."""

    wait_time = between(0.1, 1.0)

    def on_start(self) -> None:
        """Each shopper draws on its own, from the same popularity."""
        self._queries = Queries(_KNOWN, seed=random.randrange(2**31))

    def known(self) -> None:
        """A query by its popularity."""
        self._ask(self._queries.popular(), "known query")

    def unseen(self) -> None:
        """A query that this shopper has not sent before."""
        self._ask(self._queries.unseen(), "never-seen query")

    tasks = {known: 9, unseen: 1}  # noqa: RUF012 - locust's way to weigh them

    def _ask(self, query: str, name: str) -> None:
        """Ask, and count what a search page cannot use as a failure."""
        with self.client.post(
            "/rewrite",
            json={"query": query, "deadline_ms": _DEADLINE_MS},
            name=name,
            catch_response=True,
        ) as answer:
            if answer.status_code != 200:
                answer.failure(f"answered {answer.status_code}")
            elif (status := answer.json().get("status")) not in _USEFUL:
                answer.failure(f"status {status}")
