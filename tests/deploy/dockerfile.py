"""The Dockerfile, stage by stage."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass

from tests.docs.blocks import ROOT


@dataclass(frozen=True)
class Stage:
    """A stage: what it is made from, and its instructions in order, each on one line."""

    base: str
    instructions: tuple[tuple[str, str], ...]

    def of(self, name: str) -> list[str]:
        """The arguments of all instructions of a name."""
        return [arguments for one, arguments in self.instructions if one == name]


def stages() -> dict[str, Stage]:
    """All stages by name."""
    text = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    text = re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    found: dict[str, Stage] = {}
    for block in re.split(r"^(?=FROM )", text, flags=re.MULTILINE)[1:]:
        first, *lines = [line for line in block.splitlines() if line.strip()]
        _, base, _, name = first.split()
        pairs = (line.split(maxsplit=1) for line in lines)
        found[name] = Stage(base, tuple((pair[0], pair[1].strip()) for pair in pairs))
    return found


def lineage(name: str) -> list[Stage]:
    """A stage and those that it is made from, the first of them first."""
    every = stages()
    found: list[Stage] = []
    while name in every:
        found.insert(0, every[name])
        name = every[name].base
    return found


def image_environment(target: str = "cpu") -> dict[str, str]:
    """The variables that an image sets."""
    pairs = [
        pair.split("=", 1)
        for stage in lineage(target)
        for line in stage.of("ENV")
        for pair in shlex.split(line)
    ]
    return {name: value for name, value in pairs if name != "PATH"}
