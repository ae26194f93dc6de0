"""Commands of docker, helm and kubectl: that what they name is there. Nothing is run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import helm_python
import pytest
import yaml

from service.config.settings import Settings
from tests.deploy.charts import chart, render
from tests.deploy.dockerfile import stages
from tests.docs.blocks import ROOT


def check(program: str, arguments: Sequence[str]) -> None:
    """Fail if a command could not be run by a reader.

    Raises:
        KeyError: no test knows the program.
    """
    _CHECKS[program](list(arguments))


def _docker(arguments: list[str]) -> None:
    match arguments:
        case ["compose", "-f", file, command, *rest]:
            services = yaml.safe_load((ROOT / file).read_text())["services"]
            assert command in ("up", "run"), f"no test knows 'docker compose {command}'"
            words = _words(rest, with_value={"--entrypoint"})
            assert command == "up" or words[0] in services, f"there is no service {words[:1]}"
        case ["build", *rest]:
            target = _values(rest, "--target")
            assert set(target) <= stages().keys()
            assert rest[-1] == ".", "the whole repository is the context"
        case ["run", *rest]:
            given = dict(value.split("=", 1) for value in _values(rest, "-e"))
            assert given
            Settings(**{n.removeprefix("REQUERY_").lower(): v for n, v in given.items()})  # type: ignore[arg-type]
        case _:
            pytest.fail(f"no test knows 'docker {' '.join(arguments)}'")


def _helm(arguments: list[str]) -> None:
    match arguments:
        case ["install", release, folder, *rest]:
            assert (ROOT / folder / "Chart.yaml").is_file(), f"there is no chart {folder}"
            values: dict[str, Any] = {}
            for one in _values(rest, "--set"):
                _merge(values, helm_python.parse_set_string(one))
            assert render(values, release=release)
        case _:
            pytest.fail(f"no test knows 'helm {' '.join(arguments)}'")


def _kubectl(arguments: list[str]) -> None:
    match arguments:
        case ["create", "secret", "generic", name, file]:
            assert name == chart().values["keys"]["existingSecret"]
            assert file == "--from-file=keys.yaml"
        case _:
            pytest.fail(f"no test knows 'kubectl {' '.join(arguments)}'")


_CHECKS: dict[str, Callable[[list[str]], None]] = {
    "docker": _docker,
    "helm": _helm,
    "kubectl": _kubectl,
}


def _values(arguments: list[str], option: str) -> list[str]:
    return [after for one, after in pairwise(arguments) if one == option]


def _words(arguments: list[str], *, with_value: set[str]) -> list[str]:
    """The arguments without options and their values."""
    return [
        one
        for before, one in zip(["", *arguments], arguments, strict=False)
        if not one.startswith("-") and before not in with_value
    ]


def _merge(into: dict[str, Any], more: dict[str, Any]) -> None:
    for name, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = value
