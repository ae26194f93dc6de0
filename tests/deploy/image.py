"""A container of an image that buildah has, run as Docker would: without Docker, as root.

It gets a mount and a network of its own, the image's user and variables, no capability, no
privilege to gain, and nothing to write to but ``/tmp``.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KEYS = "/etc/requery"

_START = """
set -e
root=$1 keys=$2 user=$3
shift 3
ip link set lo up
mount --make-rprivate /
mount --bind "$root" "$root"
mount --rbind /proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o size=64m,mode=1777 tmpfs "$root/dev/shm"
mount -t tmpfs -o size=1g,mode=1777 tmpfs "$root/tmp"
mkdir -p "$root/etc/requery"
mount --bind -o ro "$keys" "$root/etc/requery"
mount -o remount,bind,ro "$root"
cd /
if touch "$root/written" "$root/var/cache/requery/written" 2>/dev/null; then exit 97; fi
exec chroot "$root" /usr/bin/setpriv --reuid "${user%:*}" --regid "${user#*:}" --clear-groups \
  --no-new-privs --bounding-set=-all --inh-caps=-all /usr/bin/env -i "$@"
"""


@dataclass
class Image:
    """An image, unpacked.

    Attributes:
        root: its files.
        config: what it says about how to run it, as Docker has it.
    """

    root: Path
    config: dict[str, Any]

    @property
    def command(self) -> list[str]:
        return [*self.config["Entrypoint"], *self.config["Cmd"]]

    def start(
        self, command: Sequence[str], keys: Path, log: Path, **variables: str
    ) -> subprocess.Popen[bytes]:
        """A container; its process is the service itself.

        Args:
            command: what runs in it.
            keys: a folder that it sees as :data:`KEYS`.
            log: a folder for what it says: ``out`` and ``err``.
            variables: beside the image's own.
        """
        given = [*self.config["Env"], *(f"{n}={v}" for n, v in variables.items())]
        arguments = [str(self.root), str(keys), self.config["User"], *given, *command]
        with (log / "out").open("wb") as out, (log / "err").open("wb") as err:
            return subprocess.Popen(
                ["unshare", "--mount", "--net", "sh", "-c", _START, "container", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
            )

    def inside(self, pid: int, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """What a command in the container of a process does, as Docker runs health checks."""
        enter = ["nsenter", "--target", str(pid), "--mount", "--net", "--root", "--wdns=/"]
        return _run([*enter, "/usr/bin/env", "-i", *self.config["Env"], *command], check=False)


def request(
    pid: int, path: str, body: object = None, key: str | None = None
) -> tuple[int, dict[str, Any]]:
    """Status and content of an answer of the service in the container of a process.

    The status is 0 where nothing listens yet.
    """
    command = ["nsenter", "--target", str(pid), "--net", "curl", "-s", "-w", "\\n%{http_code}"]
    if body is not None:
        command += ["-H", "content-type: application/json", "-d", json.dumps(body)]
    if key is not None:
        command += ["-H", f"authorization: Bearer {key}"]
    done = _run([*command, f"http://127.0.0.1:8000{path}"], check=False)
    text, _, status = done.stdout.rpartition("\n")
    return int(status or 0), json.loads(text) if text.startswith("{") else {}


@contextmanager
def unpacked(name: str, storage: Path, driver: str) -> Iterator[Image]:
    """An image out of buildah's storage (see deploy/container/build.sh)."""
    store = [
        "buildah", "--storage-driver", driver,
        "--root", str(storage / "root"), "--runroot", str(storage / "run"),
    ]  # fmt: skip
    config = json.loads(_run([*store, "inspect", "--type", "image", name]).stdout)
    made = _run([*store, "from", "--pull-never", name]).stdout.strip()
    try:
        root = Path(_run([*store, "mount", made]).stdout.strip())
        yield Image(root, config["Docker"]["config"])
    finally:
        _run([*store, "umount", made])
        _run([*store, "rm", made])


def _run(command: Sequence[str], *, check: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=check)
