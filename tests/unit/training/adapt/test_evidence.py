"""Logs, UBI, grades and synonyms as shops have them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from training.adapt.evidence import read_evidence, read_synonyms
from training.adapt.queries import LOG
from training.adapt.synonyms import shop_synonyms, without_development
from training.data.search import SearchIndex
from training.errors import DataError


def file(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_a_log_of_counts_with_clicked_products(tmp_path: Path) -> None:
    log = file(
        tmp_path, "log.csv",
        "Search Term,Searches,SKU\nOat  Milk,90,p1\noat milk,9,p2\noat milk,2,p3\nsoda,5,\n,3,p1\n"
        "one,two\n",
    )  # fmt: skip
    found = read_evidence([log], None)
    assert found.searches == {"oat milk": 101, "soda": 5}
    assert found.relevant == {"oat milk": {"p1", "p2"}}
    assert found.bad.told == ["log.csv: line 7: has 2 fields, and the header has 3"]
    (known,) = found.known({"p1": "", "p9": ""}, 10)
    assert (known.text, known.kind) == ("oat milk", LOG)
    assert known.relevant == {"p1"}
    assert found.known({"p9": ""}, 10) == []
    assert found.summary({"p1": ""})["unknown_products"] == 1


def test_events_tell_searches_from_views_and_clicks(tmp_path: Path) -> None:
    rows = [
        ("search", ""), ("impression", "p1"), ("impression", "p2"), ("click", "p2"),
        ("add_to_cart", "p3"),
    ]  # fmt: skip
    lines = (json.dumps({"query": "cola", "event": e, "product_id": p}) + "\n" for e, p in rows)
    found = read_evidence([file(tmp_path, "events.jsonl", "".join(lines))], None)
    assert found.searches == {"cola": 1}
    assert found.relevant == {"cola": {"p2", "p3"}}


@pytest.mark.parametrize("first", [0, 1])
def test_ubi_in_any_order(first: int, tmp_path: Path) -> None:
    queries = [{"_source": {"query_id": "q1", "user_query": "Cola", "timestamp": "2026-01-01"}}]
    detail = {"object": {"object_id": "p2", "object_id_field": "sku"}}
    events = [
        {"query_id": "q1", "action_name": name, "event_attributes": detail}
        for name in ("item_click", "view")
    ] + [{"query_id": "lost", "action_name": "click", "event_attributes": detail}]
    paths = [
        file(tmp_path, name, "".join(json.dumps(row) + "\n" for row in rows))
        for name, rows in (("ubi_queries.ndjson", queries), ("ubi_events.ndjson", events))
    ]
    found = read_evidence([paths[first], paths[1 - first]], None)
    assert found.searches == {"cola": 1}
    assert found.relevant == {"cola": {"p2"}}


@pytest.mark.parametrize(
    ("grades", "relevant"), [((1, 2.5, 3), {"p2", "p3"}), ((0, 0, 1), {"p3"}), ((1, 1, 1), None)]
)
def test_grades_of_the_upper_half_count_and_go_before_clicks(
    grades: tuple[float, ...], relevant: set[str] | None, tmp_path: Path
) -> None:
    log = file(tmp_path, "log.csv", "query,product_id\ncola,p9\n")
    text = "".join(f"cola\tp{i}\t{g}\n" for i, g in enumerate(grades, start=1))
    path = file(tmp_path, "j.tsv", f"query\tproduct_id\tgrade\n{text}cola\tp4\tgood\n")
    found = read_evidence([log], path)
    assert found.relevant == {"cola": relevant or {"p1", "p2", "p3"}}
    assert found.graded
    assert found.bad.told == ["j.tsv: row 4: has no number as grade"]


def test_synonyms_of_solr(tmp_path: Path) -> None:
    path = file(
        tmp_path, "s.txt", "# ours\nSoda, soft drink,pop # drinks\n\ntv => television, hdtv\n"
    )
    assert read_synonyms(path) == {
        "soda": ["soft drink", "pop"],
        "soft drink": ["soda", "pop"],
        "pop": ["soda", "soft drink"],
        "tv": ["television", "hdtv"],
    }
    with pytest.raises(DataError, match=r"line 1 is neither 'a, b' nor 'a => b': lonely"):
        read_synonyms(file(tmp_path, "s.txt", "lonely\n"))


def test_files_without_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column for the query .*rename one"):
        read_evidence([file(tmp_path, "l.csv", "words\nx\n")], None)
    with pytest.raises(DataError, match="has no row with a query, a product id and a grade"):
        read_evidence([], file(tmp_path, "j.csv", "query,grade\ncola,1\n"))


def test_terms_that_the_shop_confirms(tmp_path: Path) -> None:
    titles = {"1": "fizzo cola soft drink", "2": "fizzo lemon soft drink", "3": "baking soda",
              "4": "diapers small", "5": "small sofa"}  # fmt: skip
    found = shop_synonyms(SearchIndex(titles), {"fizz": ["soft drink", "bubbly"], "sofa": ["cola"]})
    assert found["fizz"] == ["soft drink"]
    assert found["soda"] == ["soft drink"]
    assert "diapers" in found["nappies"]
    assert "sofa" in found["couch"]
    # Finds no more than the term itself, or is not sold.
    assert "sofa" not in found
    assert "diapers" not in found
    assert not {"hdtv", "television"} & {other for others in found.values() for other in others}
    for term, others in without_development(found).items():
        assert set(others) <= set(found[term])
