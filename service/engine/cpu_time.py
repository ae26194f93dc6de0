"""How much a process has computed: tells a slow engine core from one that hangs."""

from __future__ import annotations

import psutil


def cpu_seconds(pid: int) -> float:
    """Seconds of CPU time that all threads of a process have used; 0 if it has ended.

    It counts in hundredths of a second, so that threads which only poll do not count as work.
    """
    try:
        times = psutil.Process(pid).cpu_times()
    except psutil.Error:
        return 0.0
    return float(times.user + times.system)
