from __future__ import annotations

from loadtests.report import Promise, Report, Row, table


def test_every_promise_is_a_row() -> None:
    reports = [
        Report("a", {}, (Promise("fast", "1 ms", True), Promise("never", "2 of 3", False))),
        Report("b", {}, (Promise("told", "7", None),)),
    ]
    assert table(reports).splitlines()[2:] == [
        "| a | fast | 1 ms | yes |",
        "| a | never | 2 of 3 | **no** |",
        "| b | told | 7 | - |",
    ]


def test_measurements_are_rows_and_break_no_table() -> None:
    raw = Report("misses", {}, (Row("raw", "none", note="a | b\n\nTraceback"),))
    hits = Report("hits", {}, (Row("memory", "5/s", "0.5 of bare", "INVALID: idle"),))
    assert table([raw, hits]).splitlines() == [
        "| part | what | figure | ratio | note |",
        "|---|---|---|---|---|",
        "| misses | raw | none |  | a \\| b Traceback |",
        "| hits | memory | 5/s | 0.5 of bare | INVALID: idle |",
    ]
    assert "| part | text | measured | held |" in table(
        [hits, Report("a", {}, (Promise("fast", "1 ms", True),))]
    )
