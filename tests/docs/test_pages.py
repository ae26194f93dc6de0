"""Every command and example of the documentation is run, compared or parsed: see blocks.py."""

from __future__ import annotations

import inspect
import json
import re
import shlex
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from examples.search_backend import queries
from service.client import Rewrite
from service.config.page import page as settings_page
from service.overrides.entries import read_entries
from service.security.keyring import check_keys_file
from tests.deploy.charts import render
from tests.docs import contract, shell
from tests.docs.blocks import LANGUAGES, PAGES, ROOT, Block, blocks
from tests.docs.services import SERVICES, Exchange, Running, document

REWRITES = (Rewrite("steel stake", 0.9978), Rewrite("metal stake", 0.9123))
"""Those of "steele stake" on docs/search-backends.md."""


BLOCKS = [block for page in PAGES for block in blocks(page)]
CHECKED = [block for block in BLOCKS if "held by" not in block.notes]


def of(*languages: str) -> pytest.MarkDecorator:
    """Runs a test for each block of these languages."""
    found = [block for block in CHECKED if block.language in languages]
    return pytest.mark.parametrize("block", found, ids=str)


class TestNothingIsIgnored:
    @pytest.mark.parametrize("block", CHECKED, ids=str)
    def test_what_a_block_is_is_known(self, block: Block) -> None:
        assert block.language in LANGUAGES, f"{block}: say its language on the fence"
        assert block.notes.get("service", "ready") in SERVICES, f"{block}: no such service"

    def test_what_other_tests_check_names_one_that_is_there(self) -> None:
        for block in BLOCKS:
            if block not in CHECKED:
                assert (ROOT / block.notes["held by"]).is_file(), block

    def test_every_service_is_used(self) -> None:
        assert {block.notes.get("service", "ready") for block in CHECKED} == set(SERVICES)


@asynccontextmanager
async def _services(folder: Path) -> AsyncIterator[Callable[[str], Any]]:
    """Gives the service of a name, started when it is first asked for."""
    async with AsyncExitStack() as stack:
        started: dict[str, Running] = {}

        async def service(name: str) -> Running:
            if name not in started:
                place = folder / str(len(started))
                place.mkdir()
                started[name] = await stack.enter_async_context(SERVICES[name](place))
            return started[name]

        yield service


def _runs(page: str) -> list[Block]:
    return [
        block
        for block in CHECKED
        if block.page == page
        and (
            (block.language == "sh" and any(c.runs for c in shell.commands(block.text)))
            or (block.language == "python")
        )
    ]


@pytest.mark.parametrize("page", [page for page in PAGES if _runs(page)])
async def test_commands_do_what_the_page_says(page: str, tmp_path: Path) -> None:
    problems = []
    async with _services(tmp_path) as service:
        for block in _runs(page):
            running = await service(block.notes.get("service", "ready"))
            try:
                if block.language == "python":
                    await running.run(f"python -W error -c {shlex.quote(block.text)}")
                else:
                    await _check_commands(block, running)
            except (AssertionError, ValueError) as error:
                problems.append(f"{block}: {error}")
    assert not problems, "\n\n".join(problems)


async def _check_commands(block: Block, running: Running) -> None:
    script = "\n".join(c.text for c in shell.commands(block.text) if c.runs)
    printed, exchanges = await running.run(script)
    for exchange in exchanges[: -1 if block.answer else None]:
        _check_exchange(exchange, status=None)
    if block.answer is None:
        return
    if block.answer.language == "text":
        assert printed == block.answer.text
        return
    if block.answer.language == "prometheus":
        assert _samples(block.answer.text) <= _samples(printed), f"it prints {printed}"
        return
    assert exchanges, "an answer is shown to what asks nothing"
    last = exchanges[-1]
    text = block.answer.text
    if block.answer.language == "http":
        head, _, text = text.partition("\n\n")
        _check_head(last, head)
        status: int | None = last.status
    else:
        shown = json.loads(text)
        code = shown.get("status") if isinstance(shown, dict) else None
        status = code if isinstance(code, int) else None
    _check_exchange(last, status=status)
    if text.strip():
        contract.same(json.loads(text), last.content)


def _check_exchange(exchange: Exchange, *, status: int | None) -> None:
    """An answer must be of that status (default: a success), and as the document says."""
    right = 200 <= exchange.status < 300 if status is None else exchange.status == status
    assert right, f"got {exchange}"
    media = exchange.headers.get("content-type", "").partition(";")[0]
    if exchange.status == 204 or media == "text/plain" or not media:
        return
    whole = document()
    schema = contract.schema_of(whole, exchange.method, exchange.url, exchange.status, media)
    contract.check(whole, schema, exchange.content)


def _check_head(exchange: Exchange, head: str) -> None:
    """The status line must be the one that is shown, and the headers there, of the same kind."""
    first, *lines = head.strip().splitlines()
    assert first.split()[1] == str(exchange.status), f"got {exchange}"
    for line in lines:
        name, _, value = (part.strip() for part in line.partition(":"))
        given = exchange.headers.get(name.lower())
        assert given is not None, f"no header {name} in {exchange.headers}"
        if name.lower() not in ("x-request-id", "server-timing", "date", "content-length"):
            assert given == value, f"{name}: {given}"


def _samples(text: str) -> set[str]:
    """Names of metrics, with their labels' names, in the Prometheus text format."""
    found = set()
    for line in text.splitlines():
        if match := re.match(r"(\w+)(?:\{([^}]*)\})?\s+[\d.e+-]+$", line.strip()):
            labels = re.findall(r"(\w+)=\"", match[2] or "")
            found.add(f"{match[1]}{sorted(labels)}")
    return found


@of("sh")
def test_commands_that_are_not_run_could_be(block: Block) -> None:
    for command in shell.commands(block.text):
        if not command.runs:
            shell.check(command)


ANSWERS = [block.answer for block in CHECKED if block.answer is not None]


def _request(content: Any) -> str:
    """The schema of a body that stands alone."""
    if isinstance(content, dict) and {"rewrites", "status"} <= content.keys():
        return "RewriteResponse"
    return "RewriteRequest"


@of("json")
def test_json_is_as_the_api_has_it(block: Block) -> None:
    if block.notes.get("made by"):
        function = getattr(queries, block.notes["made by"])
        given = {"index": "products"} if "index" in inspect.signature(function).parameters else {}
        made = function("steele stake", REWRITES, **given)
        if isinstance(made, str):
            assert block.text == made
        else:
            assert json.loads(block.text) == made
        return
    content = json.loads(block.text)
    if any(block is answer for answer in ANSWERS):
        return  # compared where the command is run
    name = block.notes.get("schema") or _request(content)
    contract.check(document(), {"$ref": f"#/components/schemas/{name}"}, content)


@of("http", "prometheus", "text")
def test_what_is_printed_follows_its_command(block: Block) -> None:
    assert any(block is answer for answer in ANSWERS), f"{block} shows no command's answer"


@of("yaml")
def test_yaml_is_what_it_is_said_to_be(block: Block, tmp_path: Path) -> None:
    content = yaml.safe_load(block.text)
    file = tmp_path / "example.yaml"
    file.write_text(re.sub(r"(sha256: )\w+\.\.\.", r"\g<1>" + "ab" * 32, block.text))
    if isinstance(content, dict) and "stages" in content:
        recipes = pytest.importorskip("training.recipe")
        recipes.load_recipe(file)
    elif isinstance(content, list) and all("sha256" in one for one in content):
        assert len(check_keys_file(file)) == len(content)
    elif block.notes.get("values") == "requery":
        assert render(content)
    elif isinstance(content, dict) and "overrides" in content:
        assert read_entries(content["overrides"], most=100)
    elif isinstance(content, dict) and {"kind", "apiVersion"} <= content.keys():
        assert {"metadata"} <= content.keys()
    else:
        pytest.fail(f"{block}: no test knows what this is")


@of("files")
def test_files_that_are_listed_are_there(block: Block) -> None:
    packages = [ROOT / "deploy", *(path.parent for path in ROOT.glob("*/__init__.py"))]
    files = {path.name for package in packages for path in package.rglob("*.py")}
    folders = {path.name for package in packages for path in (package, *package.rglob("*/"))}
    for line in block.text.splitlines():
        if not line.startswith("planned:"):
            assert set(re.findall(r"\b\w+\.py\b", line)) <= files, line
            assert set(re.findall(r"(?:^|\s)(\w+)/(?=[\s,;.]|$)", line)) <= folders, line


@of("mermaid")
def test_a_diagram_draws_lines_between_boxes_that_it_names(block: Block) -> None:
    first, *lines = block.text.strip().splitlines()
    assert re.fullmatch(r"flowchart (LR|TD)", first)
    boxes = set(re.findall(r"\b(\w+)(?:\[|\(|\{)", block.text))
    arrows = [line for line in lines if "--" in line or "-." in line]
    assert arrows
    for line in arrows:
        bare = re.sub(r"\|[^|]*\||\[[^\]]*\]|\([^)]*\)+|\{[^}]*\}", "", line)
        for end in re.split(r"\s*(?:-->|-\.->|---)\s*", bare.strip()):
            assert set(re.split(r"\s*&\s*", end.strip())) <= boxes, line


TEXTS = {page: (ROOT / page).read_text(encoding="utf-8") for page in PAGES}


FOLDERS = "service|training|tests|loadtests|model_store|examples"


class TestNames:
    @pytest.mark.parametrize("page", PAGES)
    def test_settings_are_there(self, page: str) -> None:
        named = set(re.findall(r"\bREQUERY_[A-Z_]+[A-Z]\b", TEXTS[page]))
        assert named <= shell.SETTINGS | set(shell.OTHER_VARIABLES)

    async def test_metrics_are_there(self, tmp_path: Path) -> None:
        async with _services(tmp_path) as service:
            running = await service("ready")
            # Some are registered by what uses them first.
            printed, _ = await running.run("curl -s localhost:8000/metrics")
        there = set(re.findall(r"^# HELP (\w+)", printed, re.MULTILINE))
        there |= {name.removesuffix("_total") for name in there}
        missing = {
            page: sorted(
                name
                for name in set(re.findall(r"`(requery_\w+)", text))
                if not _metric(name, there)
            )
            for page, text in TEXTS.items()
        }
        assert not {page: names for page, names in missing.items() if names}

    @pytest.mark.parametrize("page", PAGES)
    def test_links_within_the_repository_lead_somewhere(self, page: str) -> None:
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", TEXTS[page]):
            if "://" not in target:
                assert (ROOT / page).parent.joinpath(target).exists(), target

    @pytest.mark.parametrize("page", PAGES)
    def test_files_and_make_targets_named_in_the_text_are_there(self, page: str) -> None:
        for path in re.findall(
            r"`((?:service|training|tests|loadtests|model_store|examples)/[\w./-]+)`", TEXTS[page]
        ):
            assert (ROOT / path).exists(), path
        for target in re.findall(r"`make ([a-z-]+)[^`]*`", TEXTS[page]):
            assert f"\n{target}:" in (ROOT / "Makefile").read_text(), target


INLINE = [
    pytest.param(page, code, id=f"{page}: {code}")
    for page, text in TEXTS.items()
    for code in sorted(set(re.findall(r"`((?:make|requery) [^`\n]+)`", text)))
]


@pytest.mark.parametrize(("page", "code"), INLINE)
def test_commands_in_the_text_could_be_run(page: str, code: str) -> None:
    (command,) = shell.commands(code)
    if re.fullmatch(r"requery( [a-z]+){1,2}", code):
        command.words.append("--help")  # only its name was meant
    shell.check(command)


def _metric(name: str, there: set[str]) -> bool:
    """Whether a metric is there; a name that ends with an underscore stands for several."""
    if name.endswith("_"):
        return any(one.startswith(name) for one in there)
    return name in there or name.removesuffix("_total") in there


def test_the_page_of_settings_is_the_one_that_is_made() -> None:
    assert (ROOT / "docs/settings.md").read_text(encoding="utf-8") == settings_page(), (
        "python -m service.config.page > docs/settings.md"
    )


def test_every_route_is_on_the_page_of_the_api() -> None:
    shown = TEXTS["docs/api.md"]
    for path in document()["paths"]:
        assert path in shown, path
