"""From figures of one replica to fleets: ``python -m loadtests.capacity``."""

from loadtests.capacity.command import app

__all__ = ["app"]
