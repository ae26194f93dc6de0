"""What ``requery ab`` says when it cannot begin: one line, no stack trace."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

from tests.support.http_server import listening
from tests.unit.training.test_cli import invoke, one_line


def test_unknown_source() -> None:
    line = one_line(invoke("ab", "--source", "amazon"))
    assert line == "requery ab: --source is home_depot, best_buy or tables, not 'amazon'"


def test_no_service() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    assert one_line(invoke("ab", "--url", url)).startswith(
        f"requery ab: no service answers at {url} (ConnectError"
    )


async def test_no_data_and_nothing_to_compare(tmp_path: Path) -> None:
    async with listening() as service:
        options = ["--url", f"http://127.0.0.1:{service.port}", "--data", str(tmp_path / "none")]
        line = one_line(await asyncio.to_thread(invoke, "ab", *options))
        assert line.startswith(f"requery ab: no data folder at {tmp_path}/none")
        options += ["--holdout-share", "0"]
        line = one_line(await asyncio.to_thread(invoke, "ab", *options))
        assert line.startswith("requery ab: there is nothing to compare with test-1")
