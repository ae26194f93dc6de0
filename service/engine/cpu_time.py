"""How much a process has computed: what tells a slow engine core from one that hangs."""

from __future__ import annotations

import os
from pathlib import Path

_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_USER, _SYSTEM = 11, 12
"""Places of the two times behind the name, which may hold spaces and ends with a parenthesis."""


def cpu_seconds(pid: int) -> float:
    """Seconds of CPU time that a process has used, all threads together; 0 if it is gone.

    It counts in hundredths of a second, which is coarse enough for threads that only look at
    something now and then not to count as work.
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    fields = stat.rpartition(")")[2].split()
    return (int(fields[_USER]) + int(fields[_SYSTEM])) / _TICKS_PER_SECOND
