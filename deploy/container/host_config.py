#!/usr/bin/env python3
"""Prints the options by which ``buildah build`` installs as this machine does, one a line.

``host_config.py FILE`` writes pip's configuration, from its files and variables, to ``FILE``,
which goes into the build as a secret. The local folders that it names (wheels, indexes) are
mounted at their own places and are no part of the image.
"""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import url2pathname

_PLACES = ("index-url", "extra-index-url", "find-links", "cert")
_TAKEN = (*_PLACES, "trusted-host", "default-timeout", "proxy")


def configuration(listed: str) -> dict[str, str]:
    """What ``pip config list`` says, as pip itself would take it: variables before files."""
    found: dict[str, str] = {}
    # Variables are listed first, and count most.
    for line in reversed(listed.splitlines()):
        if match := re.fullmatch(r"(?::env:|global|install)\.([\w-]+)=(.*)", line):
            found[match[1]] = ast.literal_eval(match[2])
    return {name: found[name] for name in _TAKEN if name in found}


def local_paths(values: dict[str, str]) -> list[Path]:
    """The folders and files that a configuration names."""
    paths = []
    for name in _PLACES:
        for word in values.get(name, "").split():
            path = Path(url2pathname(urlsplit(word).path) if word.startswith("file:") else word)
            # The pages of an index point to files beside its folder.
            paths.append(path.parent if path.name == "simple" else path)
    return [path for path in dict.fromkeys(paths) if path.is_absolute() and path.exists()]


def main() -> None:
    """Write the file and print the options."""
    listed = subprocess.run(
        [os.environ.get("PIP", "pip"), "config", "list"], capture_output=True, text=True, check=True
    )
    values = configuration(listed.stdout)
    lines = [f"{name} = {value}" for name, value in values.items()]
    Path(sys.argv[1]).write_text("\n".join(["[global]", *lines, ""]), encoding="utf-8")
    for path in local_paths(values):
        print(f"--volume={path}:{path}:ro")
    # The places that are configured also have torch's CPU build, or their owner knows why not.
    print("--build-arg=TORCH_INDEX=")


if __name__ == "__main__":
    main()
