"""What the dashboards and rules ask Prometheus for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser
import yaml
from promql_parser import MatchOp

FOLDER = Path(__file__).parents[2] / "deploy" / "observability"
RULES = sorted((FOLDER / "rules").glob("*.yml"))
RULE_TESTS = sorted((FOLDER / "rule-tests").glob("*.yml"))
DASHBOARDS = sorted((FOLDER / "dashboards").glob("*.json"))
RUNBOOK = FOLDER.parents[1] / "docs" / "runbook.md"

_VARIABLES = {"$__rate_interval": "1m", "$job": ".*", "$instance": ".*"}
"""Of Grafana, and what Prometheus is asked for instead."""
OF_PROMETHEUS = {"job", "instance"}
"""Labels that Prometheus adds."""


@dataclass(frozen=True)
class Query:
    """One query and where it stands."""

    place: str
    text: str

    def __str__(self) -> str:
        return self.place


class Selector(NamedTuple):
    """A metric that a query reads, its matchers (label, value, whether equal), and groupings."""

    name: str
    matchers: list[tuple[str, str, bool]]
    grouped_by: frozenset[str]


def dashboard(path: Path) -> dict[str, Any]:
    """A dashboard as Grafana reads it."""
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def panels(path: Path) -> list[dict[str, Any]]:
    """The panels of a dashboard that show something, those inside rows too."""
    found = []
    for panel in dashboard(path)["panels"]:
        found += [panel, *panel.get("panels", [])]
    return [panel for panel in found if panel["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    """All rules, recording and alerting."""
    files = [yaml.safe_load(path.read_text()) for path in RULES]
    return [rule for file in files for group in file["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    """Alerting rules by name."""
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def recorded() -> set[str]:
    """Names of the series that rules record."""
    return {rule["record"] for rule in rules() if "record" in rule}


def dashboard_queries() -> list[Query]:
    """Every query of every panel and annotation, with Grafana's variables filled in."""
    found = []
    for path in DASHBOARDS:
        for panel in panels(path):
            for target in panel["targets"]:
                place = f"{path.stem}: {panel['title']} {target['refId']}"
                found.append(Query(place, _filled(target["expr"])))
        found += [
            Query(f"{path.stem}: {one['name']}", _filled(one["expr"]))
            for one in dashboard(path)["annotations"]["list"]
        ]
    return found


def rule_queries() -> list[Query]:
    """The expression of every rule."""
    return [Query(rule.get("alert") or rule["record"], rule["expr"]) for rule in rules()]


def selectors(text: str) -> list[Selector]:
    """Every metric that a query reads.

    Raises:
        ValueError: it is no PromQL.
    """
    return list(_walk(promql_parser.parse(text), frozenset()))


def _walk(node: Any, grouped_by: frozenset[str]) -> Iterator[Selector]:
    if node is None or isinstance(node, promql_parser.NumberLiteral | promql_parser.StringLiteral):
        return
    if isinstance(node, promql_parser.AggregateExpr):
        labels = frozenset(node.modifier.labels) if node.modifier else frozenset()
        yield from _walk(node.expr, grouped_by | labels)
        yield from _walk(node.param, grouped_by)
    elif isinstance(node, promql_parser.BinaryExpr):
        yield from _walk(node.lhs, grouped_by)
        yield from _walk(node.rhs, grouped_by)
    elif isinstance(node, promql_parser.Call):
        for argument in node.args:
            yield from _walk(argument, grouped_by)
    elif isinstance(node, promql_parser.MatrixSelector):
        yield from _walk(node.vector_selector, grouped_by)
    elif isinstance(node, promql_parser.VectorSelector):
        matchers = [
            (one.name, one.value, one.op == MatchOp.Equal) for one in node.matchers.matchers
        ]
        assert node.name is not None, "every query names its metric"
        yield Selector(node.name, matchers, grouped_by)
    else:  # parentheses, negation, subqueries
        yield from _walk(node.expr, grouped_by)


def _filled(text: str) -> str:
    for name, value in _VARIABLES.items():
        text = text.replace(name, value)
    assert "$" not in text, text
    return text
