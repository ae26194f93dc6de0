"""Overrides out of any JSON or YAML, and the files that hold them and the keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from service.config.watched_file import FileInvalid, FollowedFile
from service.errors import InvalidRequest
from service.overrides.entries import read_entries, read_entry
from service.overrides.file import overrides_file
from service.overrides.metrics import OverrideMetrics
from service.overrides.table import Table, TableCodec
from service.security.api_keys import KeysInvalid, read_keys
from tests.fuzz.profile import fuzzed
from tests.fuzz.strategies import encodable, json_values, texts

kinds = st.sampled_from(["block_query", "block_term", "pin"])
times = st.sampled_from(
    ["2030-01-31T18:00:00+01:00", "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00",
     "2030-01-31", "2030-W05-4T00:00Z", "24:00", "2030-01-31T18:00:00.1234567Z"]
)  # fmt: skip
fields = st.fixed_dictionaries(
    {"kind": kinds | json_values, "reason": texts | json_values},
    optional={
        "query": texts | json_values,
        "term": texts | json_values,
        "rewrites": st.lists(texts, max_size=4) | json_values,
        "id": texts | st.text("ab-._", max_size=70) | json_values,
        "author": texts | json_values,
        "created_at": times | json_values,
        "expires_at": times | json_values,
        "other": json_values,
    },
)

YAML = (
    "overrides: [{kind: pin, query: a, rewrites: [b], author: ada, reason: r}]",
    "- {name: ops, sha256: " + "0" * 64 + ", scopes: [admin]}",
    "[" * 3000, "{a: " * 3000, "- " * 3000, "&a [*a, *a]", "&a {overrides: *a}", "*nobody",
    "overrides: &a [*a]", "!!binary é",
    "!!python/object/apply:os.system [true]", "!!set {a, b}", "!!omap [a: 1, b]", "!!null x",
    "overrides: !!pairs [a]", "=", "<<: 1", "<<: [1]", "? [a]\n: b", "a: 1\na: 2", "%YAML 9.9\n---",
    "---\n...\n---", "\x00", "\t", "2030-13-45", "0b2", "0o9", "1:99:99", "." * 40, "!<!> a",
    "9" * 5000, "\ufeff", "overrides: 2024-02-30", "- !!int '9'",
    "a: &x [1,1,1,1,1,1]\nb: &y [*x,*x,*x,*x,*x,*x]\noverrides: [*y,*y,*y,*y,*y,*y,*y,*y]",
)  # fmt: skip
# Here PyYAML fails in ways that it does not name.
UNNAMED = ("!!timestamp x", "!!bool x", "!!int ''", "!!float ''")
fragments = st.lists(st.sampled_from([*YAML, "\n", "  ", ": ", "- ", "#", '"', "|\n"]), max_size=5)
contents = (
    st.binary(max_size=200)
    | fragments.map("".join).map(lambda text: text.encode("utf-8", "ignore"))
    | json_values.map(lambda value: orjson.dumps(value, default=str) if _small(value) else b"")
    | st.lists(fields, max_size=3).map(lambda some: yaml.safe_dump({"overrides": some}).encode())
)


def _small(value: Any) -> bool:
    try:
        orjson.dumps(value)
    except TypeError:
        return False
    return True


@fuzzed
@given(fields | json_values)
def test_any_object_is_an_entry_or_refused(content: Any) -> None:
    try:
        entry = read_entry(content)
    except InvalidRequest:
        return
    orjson.dumps(entry.stored())
    assert read_entry(entry.stored()) == entry
    assert entry.subject


@fuzzed
@given(st.lists(fields, max_size=4) | json_values)
def test_any_list_is_a_table_or_refused(content: Any) -> None:
    try:
        entries = read_entries(content, most=3)
        named = [one.model_copy(update={"id": f"n{i}"}) for i, one in enumerate(entries)]
        table = Table(named)
    except InvalidRequest:
        return
    codec = TableCodec()
    assert codec.parse(codec.dump(table)).entries == table.entries


@fuzzed
@given(json_values | st.fixed_dictionaries({"overrides": st.lists(fields, max_size=3)}))
def test_any_stored_document_is_a_table_or_refused(body: Any) -> None:
    if isinstance(body, dict):
        try:
            TableCodec().parse(body)
        except ValueError:
            return


def _file(path: Path) -> FollowedFile[Table]:
    return overrides_file(path, OverrideMetrics(CollectorRegistry()))


def _read(path: Path) -> None:
    file = _file(path)
    refusal = ""
    try:
        file.load()
    except FileInvalid as error:
        refusal = str(error)
    if refusal:
        assert str(path) in refusal
        assert ("rename it" in refusal) == (path.suffix in (".txt", ""))
        file.poll()
        assert len(file.value) == 0


@fuzzed
@given(contents, st.sampled_from([".json", ".yaml", ".yml", ".txt", ""]))
def test_any_file_is_taken_or_refused_with_its_name(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str
) -> None:
    path = tmp_path_factory.getbasetemp() / f"overrides{suffix}"
    path.write_bytes(content)
    _read(path)


@pytest.mark.parametrize("text", [*YAML, *UNNAMED])
def test_yaml_that_breaks_readers(tmp_path: Path, text: str) -> None:
    for content in (text, f"overrides:\n- {text}", f"overrides: [{{reason: {text}}}]"):
        path = tmp_path / "overrides.yaml"
        path.write_text(content)
        _read(path)


@fuzzed
@given(contents, st.sampled_from([".json", ".yaml", ".yml", ".txt"]))
def test_any_file_of_keys_is_taken_or_refused(content: bytes, kind: str) -> None:
    try:
        keys = read_keys(content, kind)
    except KeysInvalid:
        return
    assert len({key.name for key in keys}) == len(keys)


@pytest.mark.parametrize("text", [*YAML, *UNNAMED])
def test_yaml_that_breaks_readers_of_keys(text: str) -> None:
    for content in (text, f"- {text}", f"- {{name: a, sha256: {text}}}"):
        try:
            read_keys(content.encode(), ".yaml")
        except KeysInvalid:
            continue


@fuzzed
@given(encodable, st.sampled_from(["query", "rewrites"]))
def test_what_is_pinned_is_found_again(text: str, place: str) -> None:
    content: dict[str, Any] = {"kind": "pin", "query": "a", "rewrites": ["b"], "reason": "r"}
    content[place] = text if place == "query" else [text]
    try:
        entry = read_entry(content)
    except InvalidRequest:
        return
    find: Callable[[str, float], object] = Table([entry.model_copy(update={"id": "x"})]).of
    assert find(entry.subject, 0.0) is not None
