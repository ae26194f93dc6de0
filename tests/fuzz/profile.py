"""How long properties are searched for counterexamples."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_EXAMPLES = os.environ.get("FUZZ_EXAMPLES")
"""Set by the long run (``make fuzz``); else the same few examples in every run."""

LONG = _EXAMPLES is not None

fuzzed = settings(
    max_examples=int(_EXAMPLES or 120),
    derandomize=not LONG,
    # Without a database a run leaves nothing behind, and nothing before it changes what it does.
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
"""Settings of every property here."""
