"""Runs inside the engine core: it ends with the process that started it, and not before.

vLLM's engine core outlives a parent that was killed (by the kernel's out-of-memory killer, say),
holding the model's memory for nobody. And it leaves by itself when a whole group of processes is
told to stop (Ctrl-C, a service manager), while the service still has requests to finish.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress

_INTERVAL_SECONDS = 1.0


class ParentWatch:
    """Mixed into vLLM's worker by its option ``worker_extension_cls``."""

    def end_with_parent(self) -> None:
        """Watch the parent from now on; its death ends this process at once, a signal does not."""
        with suppress(ValueError):  # only a main thread may, and only there do signals arrive
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
        parent = os.getppid()

        def watch() -> None:
            while os.getppid() == parent:
                time.sleep(_INTERVAL_SECONDS)
            # Nobody is left to clean up for.
            os._exit(1)

        threading.Thread(target=watch, name="parent-watch", daemon=True).start()
