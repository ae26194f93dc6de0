from __future__ import annotations

from math import ceil
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from typer.testing import CliRunner

from loadtests.capacity import app
from loadtests.capacity.plan import Inputs, plan, replica_load
from loadtests.capacity.queueing import erlang_b

UNIFORM = np.full(1_000, 0.001)
QUARTER = Inputs(cache_entries=250, unseen=0.0, ttl_s=1e9, memory_hits=0.0)
"""A quarter of the look-ups of UNIFORM hit."""


def test_a_fleet_by_hand() -> None:
    inputs = QUARTER.model_copy(
        update={
            "answers_per_s": 100.0, "spare": 0.5, "shard_operations_per_s": 1_000.0,
            "replica_price_per_hour": 0.36, "shard_price_per_hour": 0.72,
        }
    )  # fmt: skip
    fleet = plan(inputs, 1_000.0, UNIFORM)
    assert fleet.hits == pytest.approx(0.25, abs=1e-4)
    assert fleet.misses_per_s == pytest.approx(750, abs=0.1)
    assert fleet.for_engines == ceil(fleet.misses_per_s / replica_load(inputs))
    assert fleet.for_answers == 10
    assert (fleet.bound, fleet.replicas) == ("engines", ceil(1.5 * fleet.for_engines))
    assert fleet.shards == 2  # 250 reads of hits, 750 of misses, 750 writes
    cents = fleet.replicas * 36 + 2 * 72
    assert fleet.cost_per_million == pytest.approx(cents / 100 / 3600 / 1_000 * 1e6)
    assert fleet.gpus == 0


def test_a_replica_is_as_full_as_may_be_turned_away() -> None:
    inputs = Inputs(generations_per_s=10.0, generation_s=0.5, turned_away=0.02)
    load = replica_load(inputs) * inputs.generation_s
    assert erlang_b(5, load) == pytest.approx(0.02)


def test_fast_engines_leave_the_answers_as_the_bound() -> None:
    inputs = QUARTER.model_copy(update={"generations_per_s": 1e4, "gpus_per_replica": 2})
    fleet = plan(inputs, 10_000.0, UNIFORM)
    assert fleet.bound == "answers"
    assert fleet.gpus == 2 * fleet.replicas


def test_every_assumption_says_that_it_is_one() -> None:
    for name, field in Inputs.model_fields.items():
        assert field.description is not None
        said = ("Measured", "Assumed", "Fitted", "Chosen", "default", "Nothing was measured")
        assert any(word in field.description for word in said), name


def printed(*arguments: str, code: int = 0) -> str:
    """What the command says."""
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == code, done.output
    return done.output


def test_figures_come_from_a_file_and_those_on_the_command_line_go_before_it(
    tmp_path: Path,
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("queries: 1000\nunseen: 0\nanswers_per_s: 50\n")
    out = printed("--inputs", str(file), "--set", "answers_per_s=1000", "--rate", "2000")
    row = [line for line in out.splitlines() if line.startswith("| 2,000 |")]
    assert row[-1].split(" | ")[4] == "2"


@pytest.mark.parametrize("wrong", ["no_such=1", "unseen=1.5", "unseen"])
def test_a_figure_that_cannot_be_is_refused_by_name(wrong: str) -> None:
    assert wrong.partition("=")[0] in printed("--set", wrong, code=2)
    with pytest.raises(ValidationError):
        Inputs(unseen=1.5)


def test_a_log_takes_the_place_of_the_law(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("query\n" + "rug\n" * 30 + "".join(f"stake {i}\n" for i in range(10)))
    out = printed("--log", str(log), "--rate", "10")
    assert out.startswith("40 searches, 11 different queries;")
    assert "| 11 | 72.5% | 100.0% | 100.0% |" in out
