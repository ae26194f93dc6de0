from __future__ import annotations

from loadtests.report import Promise, Report, shown, table


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


def test_a_report_is_json() -> None:
    report = Report("a", {"n": 1}, (Promise("fast", "1 ms", True),))
    assert report.content() == {
        "scenario": "a",
        "promises": [{"text": "fast", "measured": "1 ms", "held": True}],
        "figures": {"n": 1},
    }


def test_figures_for_people() -> None:
    assert shown(1.25, "s", 2) == "1.25 s"
    assert shown(None, "s") == "-"
