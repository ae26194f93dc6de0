"""Misses and the sweep on a GPU, for larger models. Never run so far: see docs/performance.md."""
