"""What keeps a precompute run from starting, or from going on."""

from __future__ import annotations


class PrecomputeError(Exception):
    """One line for the person at the terminal: what is wrong, and what to do."""
