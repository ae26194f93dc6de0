"""The performance benchmarks: ``python -m loadtests.bench all``, see docs/performance.md."""
