"""Commands of a shell block, and whether they could be run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import pytest
import typer

from service import cli
from service.config.settings import Settings
from tests.docs import deploying
from tests.docs.blocks import ROOT

SETTINGS = {f"REQUERY_{name.upper()}" for name in Settings.model_fields}
OTHER_VARIABLES = {
    "REQUERY_DATA": "the folder of the training data (training/cli.py)",
    "REQUERY_API_KEY": "the key that commands send to a service",
    "REQUERY_KEY": "the key of a caller (examples/search_backend)",
    "REQUERY_URL": "where a caller finds the service (examples/search_backend)",
}
"""Variables that are no settings of the service."""
RUN = ("curl", "python -m examples.")
"""What commands that are run begin with; of others only the options are looked at."""


@dataclass(frozen=True)
class Command:
    """One command of a shell block.

    Attributes:
        text: as it is written.
        words: without assignments before it, and without what it is piped or written to.
        variables: assignments before it.
    """

    text: str
    words: list[str]
    variables: dict[str, str]

    @property
    def runs(self) -> bool:
        """Whether the test runs it, wherever it stands in a pipe."""
        return any(part.strip().startswith(RUN) for part in re.split(r"(?<!\\)\|", self.text))


def commands(text: str) -> list[Command]:
    """The commands of a block, one for each line that is whole."""
    found = []
    pending = ""
    # "<what to put here>" is for the reader to fill in.
    for line in re.sub(r"<[a-z][^<>\n]*>", "PLACEHOLDER", text).splitlines():
        pending += line + "\n"
        if line.endswith(("\\", "|")):
            continue
        try:
            words = shlex.split(pending.replace("\\\n", " "), comments=True)
        except ValueError:  # a quotation goes on
            continue
        if words:
            found.append(_command(pending.strip(), words))
        pending = ""
    assert not pending, f"this never ends: {pending}"
    return found


def _command(text: str, words: list[str]) -> Command:
    variables = {}
    while words and re.fullmatch(r"[A-Z_]+=.*", words[0], re.DOTALL):
        name, _, value = words.pop(0).partition("=")
        variables[name] = value
    end = next((i for i, word in enumerate(words) if word in ("|", ">", ">>", "&&")), len(words))
    return Command(text, words[:end], variables)


def check(command: Command) -> None:
    """Fail if a command that is not run here could not be run by a reader."""
    for name in command.variables:
        if name.startswith("REQUERY_"):
            assert name in SETTINGS | set(OTHER_VARIABLES), f"there is no setting {name}"
    _check_settings({n: v for n, v in command.variables.items() if n in SETTINGS})
    program, *arguments = command.words
    match program:
        case "make":
            _check_make(arguments)
        case "requery":
            _check_requery(arguments)
        case "python":
            _check_python(arguments)
        case "docker" | "helm" | "kubectl":
            deploying.check(program, arguments)
        case _:
            pytest.fail(f"no test knows what {program!r} is")


def _check_settings(variables: dict[str, str]) -> None:
    """Values must be ones that the settings take."""
    given: dict[str, Any] = {n.removeprefix("REQUERY_").lower(): v for n, v in variables.items()}
    Settings(**given)


def _check_make(arguments: Sequence[str]) -> None:
    for one in arguments:
        name, _, value = one.partition("=")
        if name == "RECIPE":
            assert (ROOT / value).is_file(), f"there is no {value}"
    done = subprocess.run(
        ["make", "-n", *arguments],
        cwd=ROOT,
        env={**os.environ, "MAKEFLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def _check_requery(arguments: Sequence[str]) -> None:
    """Options must parse; nothing is run."""
    asked: list[tuple[str, str, list[str]]] = []

    def note(_name: str, module: str, attribute: str, given: list[str], **_: Any) -> None:
        asked.append((module, attribute, given))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cli, "_run", note)
        typer.main.get_command(cli.app)(args=list(arguments), standalone_mode=False)
    if asked:
        ((module, attribute, given),) = asked
        parse(getattr(import_module(module), attribute), given)


def _check_python(arguments: Sequence[str]) -> None:
    assert arguments[0] == "-m", "python -m <module> is all that a test knows"
    module = import_module(arguments[1])
    if hasattr(module, "__path__"):
        module = import_module(f"{arguments[1]}.__main__")
    parse(module.app, arguments[2:])


def parse(target: typer.Typer | Callable[..., Any], arguments: Sequence[str]) -> None:
    """Fail if a command line cannot be parsed; nothing is run."""
    if not isinstance(target, typer.Typer):
        function, target = target, typer.Typer()
        target.command()(function)
    command: Any = typer.main.get_command(target)
    for leaf in getattr(command, "commands", {"": command}).values():
        leaf.callback = _nothing
    command(args=list(arguments), standalone_mode=False)


def _nothing(**_: object) -> None:
    """What a command does when only its options are looked at."""


def environment(port: int, **more: str) -> dict[str, str]:
    """For commands that are run: this Python, and the service as the one to ask."""
    return {
        **os.environ,
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]),  # noqa: PTH120
        "PYTHONPATH": str(ROOT),
        "REQUERY_URL": f"http://localhost:{port}",
        **more,
    }
