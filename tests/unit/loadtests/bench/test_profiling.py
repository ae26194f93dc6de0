from __future__ import annotations

import pytest

from loadtests.bench.profiling import by_module, by_package, module

RECORDED = {
    "shared": {
        "frames": [
            {"name": "run", "file": "/x/lib/python3.11/asyncio/base_events.py"},
            {"name": "rewrite", "file": "/app/service/pipeline/rewriter.py"},
            {"name": "dumps", "file": "/x/lib/python3.11/site-packages/pydantic/main.py"},
            {"name": "poll"},
        ]
    },
    "profiles": [
        {"samples": [[0, 1], [0, 1, 2], [], [0, 3]], "weights": [3.0, 4.0, 9.0, 1.0]},
        {"samples": [[0, 1]], "weights": [2.0]},
    ],
}


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("/x/lib/python3.11/site-packages/pydantic/main.py", "pydantic.main"),
        ("/srv/service/cache/memory_tier.py", "service.cache.memory_tier"),
        ("service/pipeline/rewriter.py", "service.pipeline.rewriter"),
        ("/x/lib/python3.11/asyncio/events.py", "asyncio.events"),
        ("/x/lib/python3.11/json.py", "stdlib.json"),
        ("", "native code"),
    ],
)
def test_modules_are_told_by_their_files(file: str, name: str) -> None:
    assert module(file) == name


def test_time_is_counted_where_it_was_spent() -> None:
    assert by_module(RECORDED) == pytest.approx(
        {"service.pipeline.rewriter": 0.5, "pydantic.main": 0.4, "native code": 0.1}
    )
    assert by_package(RECORDED) == pytest.approx(
        {"service": 0.5, "pydantic": 0.4, "native code": 0.1}
    )


def test_nothing_recorded_is_no_share() -> None:
    assert by_module({"shared": {"frames": []}, "profiles": []}) == {}
