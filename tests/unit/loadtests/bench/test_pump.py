from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from loadtests.arrivals import Arrival, Phase, poisson
from loadtests.bench.pump import MEASURED, Pump, main
from loadtests.client import NotThisMachine
from tests.support.redis_server import free_port

_ONE_ANSWER = """
import socket, sys
listener = socket.create_server(("127.0.0.1", 0))
print(listener.getsockname()[1], flush=True)
caller, _ = listener.accept()
caller.recv(65536)
caller.sendall(sys.argv[1].encode().decode("unicode_escape").encode())
caller.close()
"""


@pytest.fixture
def bare() -> Iterator[str]:
    port = free_port()
    with subprocess.Popen([sys.executable, "-m", "loadtests.bare", str(port)]) as process:
        listening = socket.socket()
        while listening.connect_ex(("127.0.0.1", port)):
            assert process.poll() is None
        listening.close()
        yield f"http://127.0.0.1:{port}/rewrite"
        process.kill()


class serving:  # noqa: N801 - a context manager
    """A server in a process of its own, because the client blocks."""

    def __init__(self, answer: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _ONE_ANSWER, answer], stdout=subprocess.PIPE
        )

    def __enter__(self) -> str:
        assert self._process.stdout is not None
        return f"http://127.0.0.1:{int(self._process.stdout.readline())}/rewrite"

    def __exit__(self, *_fault: object) -> None:
        self._process.kill()
        self._process.communicate()


def test_every_request_is_sent_and_only_the_measured_ones_count(bare: str) -> None:
    phases = [Phase("warm", 200, 0.3), Phase(MEASURED, 300, 0.5)]
    arrivals = list(poisson(phases, seed=1))
    measured = sum(one.phase == MEASURED for one in arrivals)
    assert 0 < measured < len(arrivals)
    done = Pump(bare, [b'{"query":"a"}', b'{"query":"b"}'], 3).run(arrivals)
    assert (done["requests"], done["failures"]) == (measured, 0)
    for times in (done["latency_ms"], done["generator_lag_ms"]):
        assert isinstance(times, dict)
        assert times["count"] == measured


def test_more_requests_than_connections_wait_for_one(bare: str) -> None:
    arrivals = [Arrival(0.0, MEASURED)] * 20
    done = Pump(bare, [b"{}"], 2).run(arrivals)
    assert (done["requests"], done["failures"]) == (20, 0)


@pytest.mark.parametrize(
    "answer",
    ["", "HTTP/1.1 200 OK\\r\\ncontent-length: 9\\r\\n\\r\\nhalf",
     "HTTP/1.1 503 No\\r\\ncontent-length: 0\\r\\n\\r\\n"],
)  # fmt: skip
def test_what_is_no_whole_answer_is_a_failure(answer: str) -> None:
    with serving(answer) as url:
        done = Pump(url, [b"{}"], 1).run([Arrival(0.0, MEASURED)])
    assert (done["requests"], done["failures"]) == (0, 1)


def test_what_nobody_is_left_to_answer_is_a_failure() -> None:
    with serving("") as url:
        done = Pump(url, [b"{}"], 1).run([Arrival(0.0, MEASURED)] * 3)
    assert (done["requests"], done["failures"]) == (0, 3)


@pytest.mark.parametrize("answer", ["", "HTTP/1.1 503 No\\r\\ncontent-length: 0\\r\\n\\r\\n"])
def test_a_closed_loop_ends_without_a_server(answer: str) -> None:
    with serving(answer) as url:
        done = Pump(url, [b"{}"], 1).saturate(60.0)
    assert done["requests"] == 0
    assert done["failures"] >= 1


@pytest.mark.parametrize("rate", ["0", "100"])
def test_a_run_of_the_command_line(bare: str, tmp_path: Path, rate: str) -> None:
    bodies = tmp_path / "bodies.jsonl"
    bodies.write_bytes(b'{"query":"a"}\n')
    done = main([bare, str(bodies), "2", rate, "0.1", "0.3", "7"])
    assert done["requests"]
    assert done["failures"] == 0
    assert orjson.dumps(done)


def test_it_stays_on_this_machine() -> None:
    with pytest.raises(NotThisMachine):
        Pump("http://example.com/rewrite", [b"{}"], 1)
