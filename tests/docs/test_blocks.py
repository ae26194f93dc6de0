"""The tests of the documentation can fail: what they are made of, on made-up pages."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from tests.docs import blocks as module
from tests.docs import contract, shell
from tests.docs.blocks import blocks, language_of
from tests.docs.test_pages import _samples


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(module, "ROOT", tmp_path)

    def write(text: str) -> list[module.Block]:
        (tmp_path / "page.md").write_text(textwrap.dedent(text))
        return blocks("page.md")

    return write


class TestBlocks:
    def test_fences_say_what_they_are(self, page: Any) -> None:
        (one,) = page("# Title\n\n```python\nprint(1)\n```\n")
        assert (one.language, one.text, one.line, one.notes) == ("python", "print(1)\n", 3, {})

    def test_a_command_and_the_answer_below_it_are_two(self, page: Any) -> None:
        command, answer = page(
            'Text:\n\n    curl -s localhost:8000/livez\n\n    {"a":\n\n     1}\n'
        )
        assert (command.language, answer.language) == ("sh", "json")
        assert command.answer is answer
        assert answer.line == 5

    def test_what_stands_apart_is_no_answer(self, page: Any) -> None:
        command, other = page("    curl x\n\nText.\n\n    {}\n")
        assert command.answer is None
        assert other.language == "json"

    def test_comments_are_for_the_next_block_alone(self, page: Any) -> None:
        one, two, three = page(
            "<!-- service: slow -->\n\n    curl a\n\nText\n\n    curl b\n\n"
            "<!-- service: keys -->\n\nText\n\n    curl c\n"
        )
        assert [block.notes.get("service") for block in (one, two, three)] == ["slow", None, None]

    def test_blocks_in_lists_and_quotes_are_found(self, page: Any) -> None:
        found = page("- item\n\n  ```sh\n  make test\n  ```\n\n> ```json\n> {}\n> ```\n")
        assert [block.language for block in found] == ["sh", "json"]

    @pytest.mark.parametrize(
        ("text", "language"),
        [
            ("make test", "sh"),
            ("REQUERY_ADMIN_KEY='a b' make serve", "sh"),
            ("{}", "json"),
            ("- name: x", "yaml"),
            ("requery_up 1", "prometheus"),
            ("requery serve", "sh"),
            ("HTTP/1.1 200 OK", "http"),
            ("makeshift", "unknown"),
            ("QUERY a REWRITE b", "unknown"),
        ],
    )
    def test_what_is_not_marked_is_read_off(self, text: str, language: str) -> None:
        assert language_of(text) == language


class TestCommands:
    def test_lines_are_joined_as_a_shell_does(self) -> None:
        found = shell.commands(
            "make a \\\n  B=1\n\n# nothing\ncurl -d '{\n}' x  # why\nhead |\n  tr"
        )
        assert [one.words for one in found] == [
            ["make", "a", "B=1"],
            ["curl", "-d", "{\n}", "x"],
            ["head"],
        ]
        assert [one.runs for one in found] == [False, True, False]

    def test_a_quotation_that_never_ends_is_told(self) -> None:
        with pytest.raises(AssertionError, match="never ends"):
            shell.commands("curl -d '{")

    @pytest.mark.parametrize(
        "text",
        [
            "make test PYTEST_ARGS=-x",
            "make train RECIPE=training/recipes/sft-1.yaml",
            "requery serve --port 9000",
            "requery models add some/folder --to models",
            "requery keys new --name a --scope rewrite >> keys.yaml",
            "REQUERY_LOG_LEVEL=debug requery serve",
            "python -m loadtests.reliability soak --minutes 20",
        ],
    )
    def test_what_a_reader_could_run_passes(self, text: str) -> None:
        (command,) = shell.commands(text)
        shell.check(command)

    @pytest.mark.parametrize(
        "text",
        [
            "make no-such-target",
            "make train RECIPE=training/recipes/none.yaml",
            "requery serve --no-such-option",
            "requery no-such-command",
            "requery models no-such-command",
            "requery models add",
            "requery keys new --name a",
            "REQUERY_NO_SUCH_SETTING=1 requery serve",
            "REQUERY_ADMIN_KEY=short requery serve",
            "REQUERY_PORT=many requery serve",
            "python -m loadtests.reliability soak --hours 2",
            "python -m no_such_module",
            "wget localhost:8000",
        ],
    )
    def test_what_a_reader_could_not_run_fails(self, text: str) -> None:
        (command,) = shell.commands(text)
        with pytest.raises((Exception, pytest.fail.Exception)) as failed:
            shell.check(command)
        assert not isinstance(failed.value, KeyError | TypeError | AttributeError)


DOCUMENT: dict[str, Any] = {
    "paths": {
        "/things/{id}": {
            "get": {
                "responses": {
                    "200": {"content": {"application/json": {"schema": {"$ref": "#/thing"}}}}
                }
            }
        }
    },
    "thing": {"type": "object", "required": ["a"], "properties": {"a": {"type": "integer"}}},
}


class TestContract:
    def test_an_answer_must_be_documented(self) -> None:
        schema = contract.schema_of(DOCUMENT, "GET", "http://h/things/7", 200, "application/json")
        contract.check(DOCUMENT, schema, {"a": 1})
        with pytest.raises(AssertionError, match="not as the OpenAPI"):
            contract.check(DOCUMENT, schema, {"a": "1"})
        for path, status, media in (
            ("/things", 200, "application/json"),
            ("/things/7", 404, "application/json"),
            ("/things/7", 200, "text/html"),
        ):
            with pytest.raises(AssertionError):
                contract.schema_of(DOCUMENT, "GET", f"http://h{path}", status, media)

    @pytest.mark.parametrize(
        ("shown", "given"),
        [
            ({"request_id": "abc"}, {"request_id": "xyz"}),
            ({"p50": 1}, {"p50": 2.5}),
            ({"latency_ms": None}, {"latency_ms": {"p50": 1}}),
            ({"detail": "try again in 3 s"}, {"detail": "try again in 12 s"}),
        ],
    )
    def test_what_differs_from_run_to_run_may(self, shown: Any, given: Any) -> None:
        contract.same(shown, given)

    @pytest.mark.parametrize(
        ("shown", "given"),
        [
            ({"a": 1}, {"a": 2}),
            ({"a": 1}, {"a": 1, "b": 2}),
            ({"a": 1, "b": 2}, {"a": 1}),
            ([1], [1, 2]),
            ({"request_id": "abc"}, {"request_id": 5}),
            ({"a": [{"b": "x"}]}, {"a": [{"b": "y"}]}),
            ({"detail": "no key"}, {"detail": "no such key"}),
        ],
    )
    def test_what_does_not_must_be_the_same(self, shown: Any, given: Any) -> None:
        with pytest.raises(AssertionError):
            contract.same(shown, given)


def test_samples_are_names_and_labels() -> None:
    text = '# HELP a b\na_total{x="1",y="2"} 4.0\nb 1e+06\nwords\n'
    assert _samples(text) == {"a_total['x', 'y']", "b[]"}


def test_settings_are_those_of_the_service() -> None:
    with pytest.raises(ValidationError):
        shell._check_settings({"REQUERY_PORT": "-1"})
