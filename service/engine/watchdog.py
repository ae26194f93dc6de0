"""Runs inside the engine core: ends it when the process that started it is gone.

vLLM's engine core outlives a parent that was killed (by the kernel's out-of-memory killer, say),
holding the model's memory for nobody.
"""

from __future__ import annotations

import os
import threading
import time

_INTERVAL_SECONDS = 1.0


class ParentWatch:
    """Mixed into vLLM's worker by its option ``worker_extension_cls``."""

    def end_with_parent(self) -> None:
        """Watch the parent from now on; its death ends this process at once."""
        parent = os.getppid()

        def watch() -> None:
            while os.getppid() == parent:
                time.sleep(_INTERVAL_SECONDS)
            # Nobody is left to clean up for.
            os._exit(1)

        threading.Thread(target=watch, name="parent-watch", daemon=True).start()
