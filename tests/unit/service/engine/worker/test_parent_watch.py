from __future__ import annotations

import os
import select
import signal
import subprocess
import sys

CHILD = """
import sys, time
from service.engine.worker.parent_watch import ParentWatch
ParentWatch().end_with_parent()
print("watching", flush=True)
time.sleep(60)
"""

PARENT = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {CHILD!r}], stdout=subprocess.PIPE, text=True)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_killed_parent_takes_the_engine_core_along() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        ended = os.pidfd_open(child)
        try:
            parent.send_signal(signal.SIGKILL)
            readable, _, _ = select.select([ended], [], [], 30)
            assert readable
        finally:
            os.close(ended)


def test_a_living_parent_is_left_alone() -> None:
    with subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"watching\n"
        ended = os.pidfd_open(child.pid)
        try:
            # As Ctrl-C does, and a service manager: when to end is the parent's to say.
            child.send_signal(signal.SIGINT)
            child.send_signal(signal.SIGTERM)
            # Longer than it takes to notice a parent that is gone.
            assert select.select([ended], [], [], 2.5)[0] == []
        finally:
            os.close(ended)
            child.kill()
