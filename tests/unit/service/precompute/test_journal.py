"""The journal: whole after a kill at any byte, and good for one run only."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.precompute.errors import PrecomputeError
from service.precompute.journal import About, Journal, Result

ABOUT = About("sft-1", "d" * 64, 2, "p" * 32, "engine")
BATCHES: list[dict[int, Result]] = [
    dict.fromkeys(range(10), Result.GENERATED) | {4: Result.CACHED, 7: Result.FAILED},
    {7: Result.GENERATED, 12: Result.REFUSED},
    dict.fromkeys(range(20, 25), Result.CACHED),
]


def lasting(batches: list[dict[int, Result]]) -> dict[int, Result]:
    merged = {place: result for batch in batches for place, result in batch.items()}
    return {place: result for place, result in merged.items() if result is not Result.FAILED}


def written(path: Path, batches: list[dict[int, Result]], *, at: float = 1000.0) -> list[int]:
    """A journal of these batches; its length after each."""
    path.unlink(missing_ok=True)
    journal = Journal(path, ABOUT)
    lengths = [path.stat().st_size]
    for batch in batches:
        journal.append(batch, at=at)
        lengths.append(path.stat().st_size)
    journal.close()
    return lengths


def done(path: Path, about: About = ABOUT, *, not_before: float = 0.0) -> dict[int, Result]:
    journal = Journal(path, about, not_before=not_before)
    journal.close()
    return journal.done


def refusal(path: Path, about: About = ABOUT) -> str:
    before = path.read_bytes()
    with pytest.raises(PrecomputeError) as caught:
        Journal(path, about)
    assert path.read_bytes() == before
    assert "--journal" in str(caught.value)
    return str(caught.value)


def test_what_is_written_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path, BATCHES)
    assert done(path) == lasting(BATCHES)
    assert path.read_bytes().count(b"\n") == 1 + len(BATCHES)


def test_a_kill_at_any_byte_loses_one_batch_at_most(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    lengths = written(path, BATCHES)
    content = path.read_bytes()
    for cut in range(len(content)):
        path.write_bytes(content[:cut])
        whole = sum(length <= cut for length in lengths) - 1
        journal = Journal(path, ABOUT)
        assert journal.done == lasting(BATCHES[: max(0, whole)]), cut
        # ... and the next line does not follow on from the torn one.
        journal.append({99: Result.GENERATED}, at=1000.0)
        journal.close()
        assert done(path) == lasting(BATCHES[: max(0, whole)]) | {99: Result.GENERATED}


@given(st.dictionaries(st.integers(0, 60), st.sampled_from([*Result])))
def test_any_places_are_kept(
    tmp_path_factory: pytest.TempPathFactory, results: dict[int, Result]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "journal"
    written(path, [results])
    assert done(path) == lasting([results])


def test_a_batch_of_failures_leaves_no_line(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    first, second = written(path, [{1: Result.FAILED}])
    assert first == second


def test_a_last_line_of_garbage_is_torn_and_one_before_it_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    lengths = written(path, BATCHES)
    content = path.read_bytes()
    path.write_bytes(content[: lengths[2]] + b"\x00" * 9 + b"\n")
    assert done(path) == lasting(BATCHES[:2])
    path.write_bytes(content[: lengths[1]] + b"\x00\n" + content[lengths[1] :])
    assert "damaged in line 3" in refusal(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": "grpo-1", "digest": "e" * 64}, "another version (version sft-1)"),
        ({"digest": "e" * 64}, "another version"),
        ({"plan": "q" * 32}, "another input"),
        ({"cache_schema": 3}, "another release"),
        ({"target": "http://localhost:8000"}, "another target"),
    ],
)
def test_a_journal_of_another_run_is_refused(
    tmp_path: Path, change: dict[str, object], said: str
) -> None:
    path = tmp_path / "journal"
    written(path, BATCHES)
    assert said in refusal(path, replace(ABOUT, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize("content", [b"dear diary\n", b"dear diary", b"{}\n", b"[1]\n", b"5"])
def test_a_file_that_is_no_journal_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "diary"
    path.write_bytes(content)
    assert "is not a journal" in refusal(path)


def test_what_has_left_the_cache_since_is_done_again(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    written(path, BATCHES[:1], at=1000.0)
    journal = Journal(path, ABOUT)
    journal.append(BATCHES[2], at=2000.0)
    journal.close()
    assert done(path, not_before=1500.0) == lasting(BATCHES[2:])


def test_a_finished_journal_goes(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path, ABOUT)
    journal.append(BATCHES[0], at=1000.0)
    journal.close(finished=True)
    journal.close()
    assert not path.exists()


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    with pytest.raises(PrecomputeError, match="cannot be written"):
        Journal(tmp_path / "no" / "journal", ABOUT)


def test_two_runs_do_not_share_a_journal(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    journal = Journal(path, ABOUT)
    program = (
        "import sys; from pathlib import Path\n"
        "from service.precompute.journal import About, Journal\n"
        f"Journal(Path({str(path)!r}), {ABOUT!r})\n"
    )
    other = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[4],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    journal.close()
    assert "is in use by another run" in other.stderr
