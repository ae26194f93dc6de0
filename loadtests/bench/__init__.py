"""The performance benchmarks: ``python -m loadtests.bench all``, see docs/performance.md."""

from loadtests.bench.command import app

__all__ = ["app"]
