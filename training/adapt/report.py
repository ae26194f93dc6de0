"""What an adapted version does in its shop, for relevance engineers: JSON, and a page of it.

The page is one file without scripts and without anything from the network.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from service.filtering.candidates import Verdict
from training.adapt.queries import KnownQuery
from training.adapt.trial import Answers, Judge, Setting

EXAMPLES = 50
_SHOWN = 3
"""Titles of results that an example shows."""

_SAME = frozenset((Verdict.ECHO, Verdict.DUPLICATE))

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem;
  color: #1c2733; background: #fff }
table { border-collapse: collapse; width: 100%; margin: .6rem 0 1.6rem }
th, td { border-bottom: 1px solid #d5dce3; padding: .35rem .6rem .35rem 0; text-align: left;
  vertical-align: top }
th { font-weight: 600; color: #44525f }
.warn { background: #fff4d6; padding: .5rem .8rem; margin: .4rem 0 }
.none { color: #5b6772 }
small { color: #5b6772 }
"""


def examples(
    queries: Sequence[KnownQuery],
    judge: Judge,
    answers: Answers,
    setting: Setting,
    titles: Mapping[str, str],
) -> list[dict[str, Any]]:
    """Up to :data:`EXAMPLES` queries before and after, a reproducible sample."""
    chosen = random.Random(0).sample(list(queries), min(EXAMPLES, len(queries)))
    found = []
    for one in chosen:
        picked = answers.selection(one.text, setting)
        texts = [each.text for each in picked.accepted]
        effect = judge.effect(one, texts)
        found.append({
            "query": one.text, "kind": one.kind,
            "rewrites": [[r.text, round(r.relevance or 0.0, 3)] for r in picked.accepted],
            "best_dropped": [
                [r.text, r.verdict.value] for r in picked.rejected if r.verdict not in _SAME
            ][:1],
            "recall_before": round(effect.plain, 3), "recall_after": round(effect.recall, 3),
            "before": [titles[p] for p in judge.search(one.text)[:_SHOWN]],
            "after": [titles[p] for p in judge.fused(one.text, texts)[:_SHOWN]],
        })  # fmt: skip
    return found


def dropped(queries: Sequence[KnownQuery], answers: Answers, setting: Setting) -> dict[str, int]:
    """Candidates by the verdict of the filters, the most frequent first."""
    counts: Counter[str] = Counter()
    for one in queries:
        picked = answers.selection(one.text, setting)
        counts.update(each.verdict.value for each in (*picked.accepted, *picked.rejected))
    return dict(counts.most_common())


def next_steps(record: Mapping[str, Any]) -> list[str]:
    """What could make the version better, by what was read and measured."""
    trial = record["trial"]
    row = trial["figures"]["adapted"]
    gain, harmed = row["gain"], row["harmed"]
    steps = []
    if trial["simulated"]:
        steps.append(
            "Give real searches (--searches, with clicked products if there are any) or grades "
            "(--judgements): made queries cannot tell how often shoppers mistype or what they mean."
        )
    if harmed[0] > 0.02:
        steps.append(
            f"{harmed[0]:.1%} of the queries are harmed even at the most careful setting: read the "
            "examples below, and block bad rewrites with overrides (docs/operations.md)."
        )
    if gain[1] <= 0:
        steps.append(
            "The gain may be nothing: train on your own searches (docs/training.md) before you "
            "move traffic."
        )
    if not record["language"]["shop_brands"]:
        steps.append("Name the column of brands, so that rewrites keep them (--brand-column).")
    steps.append("Move a small share of traffic and compare orders (docs/ab.md).")
    return steps


def as_html(report: Mapping[str, Any]) -> str:
    """The page."""
    trial, read = report["trial"], report["catalogue"]
    note = " (simulated: queries made from titles)" if trial["simulated"] else ""
    own, new = trial["settings"]["from"], trial["settings"]["adapted"]
    parts = [
        f"<h1>{escape(report['name'])}</h1>",
        (f"<p>{escape(report['from']['version'])}, adapted to {read['products']:,} products on "
        f"{escape(report['at'])}. Threshold {own['min_relevance']} &rarr; {new['min_relevance']}, "
        f"rewrites {own['max_rewrites']} &rarr; {new['max_rewrites']}.</p>"),
        *(f'<p class="warn">{escape(text)}</p>' for text in report["warnings"]),
        f"<h2>Recall in {trial['depth']} results{note}</h2>",
        ("<p>Means of queries that the settings were not chosen by, with 95 % bootstrap intervals. "
        "Harmed queries lose more than 0.05 of their recall.</p>"),
        _figures(trial["figures"]),
        "<h2>Gain by kind of query</h2>",
        _table(
            ["kind", "queries", "plain", "gain", "harmed", "answered"],
            [[kind, row["queries"], *(_mean(row[k]) for k in
              ("plain_recall", "gain", "harmed", "answered"))]
             for kind, row in trial["kinds"].items()],
        ),
        *_traffic(trial["searches"]),
        "<h2>What became of the candidates</h2>",
        _table(["verdict", "candidates"], [[k, n] for k, n in trial["verdicts"].items()]),
        f"<h2>{len(trial['examples'])} queries before and after</h2>",
        _table(
            ["query", "rewrites", "recall", "first results before", "first results after"],
            [_example(one) for one in trial["examples"]], raw=True,
        ),
        "<h2>What to try next</h2>",
        "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in report["next"]) + "</ul>",
        "<h2>What was read</h2>",
        _table(
            ["", "rows"],
            [[key.replace("_", " "), n] for key, n in read.items() if isinstance(n, int)],
        ),
        *(
            f"<p><small>{escape(text)}</small></p>"
            for text in (*read["bad_rows_told"], *report["evidence"]["bad_rows_told"])
        ),
    ]  # fmt: skip
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f"<title>{escape(report['name'])}</title><style>{_STYLE}</style>{''.join(parts)}</html>\n"
    )


def _traffic(traffic: Mapping[str, Any]) -> list[str]:
    """Of the shop's most frequent searches, if there is a log."""
    if not traffic["searches"]:
        return []
    total = traffic["searches"]
    rows = [
        ["searches", total, ""],
        *([name, n := traffic[key], f"{n / total:.1%}"] for name, key in (
            ("with a rewrite", "answered"), ("whose words no product holds all", "dead_ends"),
            ("of those, with a rewrite that some product holds", "dead_ends_saved"))),
    ]  # fmt: skip
    return [f"<h2>The {traffic['queries']} most frequent searches</h2>", _table(["", "", ""], rows)]


def _figures(figures: Mapping[str, Any]) -> str:
    names = {"from": "the version before", "adapted": "the adapted version",
             "difference": "difference"}  # fmt: skip
    rows = [["the plain query", _mean(figures["adapted"]["plain_recall"]), "", "", ""]]
    for key, name in names.items():
        row = figures[key]
        cells = (_mean(row[k]) for k in ("recall", "gain", "harmed", "answered"))
        rows.append([name, *cells])
    return _table(["searching with", "recall", "gain", "harmed", "answered"], rows)


def _example(one: Mapping[str, Any]) -> list[str]:
    rewrites = "<br>".join(f"{escape(t)} <small>{p}</small>" for t, p in one["rewrites"])
    if not rewrites:
        rewrites = '<span class="none">none' + "".join(
            f"; best dropped: {escape(t)} <small>{escape(why)}</small>"
            for t, why in one["best_dropped"]
        ) + "</span>"  # fmt: skip
    return [
        f"{escape(one['query'])}<br><small>{escape(one['kind'])}</small>", rewrites,
        f"{one['recall_before']} &rarr; {one['recall_after']}",
        *("<br>".join(escape(title[:90]) for title in one[when]) for when in ("before", "after")),
    ]  # fmt: skip


def _mean(interval: Sequence[float]) -> str:
    mean, low, high = interval
    return f"{mean:.3f} [{low:.3f}, {high:.3f}]"


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]], *, raw: bool = False) -> str:
    def cell(value: Any) -> str:
        return f"<td>{value if raw else escape(str(value))}</td>"

    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(map(cell, row))}</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"
