"""Options of the benchmarks that name what there is none of."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from loadtests.bench.command import app


@pytest.mark.parametrize(
    "arguments",
    [
        ("misses", "--peer", "nobody"),
        ("gpu", "--shape", "nobody"),
        ("gpu", "--precision", "nobody"),
    ],
    ids=" ".join,
)
def test_an_unknown_name_is_told(arguments: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, [*arguments])
    assert done.exit_code == 2, done.output
    assert "nobody" in done.stderr
