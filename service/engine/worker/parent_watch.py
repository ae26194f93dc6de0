"""Runs inside the engine core: ends it together with the process that started it.

vLLM's engine core outlives a killed parent (by the kernel's out-of-memory killer, say) and keeps
the model's memory. And it stops at once when a whole process group gets a signal (Ctrl-C, a service
manager), while the service still has requests to finish. No private attribute of vLLM is used.
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
        """End at once when the parent dies; ignore the signals that stop the whole group."""
        with suppress(ValueError):  # raised outside the main thread, where no signal arrives
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_IGN)
        parent = os.getppid()

        def watch() -> None:
            while os.getppid() == parent:
                time.sleep(_INTERVAL_SECONDS)
            os._exit(1)

        threading.Thread(target=watch, name="parent-watch", daemon=True).start()
