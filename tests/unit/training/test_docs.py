"""docs/training.md promises things: its example runs, its commands and fields exist."""

from __future__ import annotations

import re
import runpy
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel

from model_store.cli import app as models_app
from training import cli
from training.data.pairs import World
from training.data.schema import SCHEMAS, Tables
from training.recipe import Recipe, load_recipe

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")


def test_the_example_makes_tables_that_can_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "clicks.csv").write_text(
        "user,query,product_id,time\n"
        "u1,red hammer,007,2026-01-31 09:15:00\n"
        "u2,red hammer,007,2026-02-01 10:00:00\n"
        "u2,nails,12,2026-02-01 10:00:01\n"
        "u3,,12,2026-02-01 10:00:01\n"
    )
    (tmp_path / "products.csv").write_text(
        'product_id,title\n007,"Hammer, red"\n12,100 nails\n12,100 nails\n'
    )
    (tmp_path / "example.py").write_text(block)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("example.py")
    tables = Tables.load(tmp_path / "my-tables")
    assert sorted(tables.interactions.rows()) == [
        ("nails", "12", "click", 1, datetime(2026, 2, 1, 10, 0, 1, tzinfo=UTC)),
        ("red hammer", "007", "click", 2, datetime(2026, 2, 1, 10, 0, 0, tzinfo=UTC)),
    ]
    assert sorted(tables.queries.rows()) == [("nails", "nails", 1), ("red hammer", "red hammer", 2)]
    assert World(tables).relevant == {"red hammer": {"007"}, "nails": {"12"}}


def test_every_table_and_column_is_described() -> None:
    for name, columns in SCHEMAS.items():
        (line,) = [row for row in PAGE.splitlines() if row.startswith(f"| `{name}.parquet`")]
        assert all(f"`{column}`" in line for column in columns)


def fields_of(model: type[BaseModel]) -> Iterator[str]:
    """Names of all fields, those of parts and of every kind of stage too."""
    for name, field in model.model_fields.items():
        yield name
        for part in re.findall(r"(?:training|model_store)\.\w+\.(\w+)", str(field.annotation)):
            found = getattr(__import__("training.recipe", fromlist=[part]), part, None)
            if isinstance(found, type) and issubclass(found, BaseModel):
                yield from fields_of(found)


def test_every_field_of_a_recipe_is_described() -> None:
    fields = set(fields_of(Recipe))
    assert {"per_query", "tag_weight", "sha256", "fold_case", "brands_file"} <= fields
    table = PAGE[PAGE.index("| field | meaning |") :]
    assert {name for name in fields if f"`{name}`" not in table} == set()


def commands() -> list[list[str]]:
    lines = [line.strip() for line in PAGE.splitlines() if line.startswith("    ")]
    words = [line.split() for line in lines if "requery " in f"{line} "]
    return [line[line.index("requery") + 1 :] for line in words]


def options_of(command: Any) -> set[str]:
    return {o for parameter in command.params for o in (*parameter.opts, *parameter.secondary_opts)}


def test_every_command_exists() -> None:
    from service.server.command import serve

    single: dict[str, Callable[..., None]] = {
        "train": cli.train,
        "compare": cli.compare,
        "evaluate": cli.evaluate,
        "judge": cli.judge,
        "serve": serve,
    }
    found = commands()
    assert {line[0] for line in found} == {
        "train",
        "compare",
        "evaluate",
        "judge",
        "models",
        "serve",
    }
    for name, *rest in found:
        if name == "models":
            group: Any = typer.main.get_command(models_app)
            command = group.commands[rest[0]]
        else:
            app = typer.Typer(add_completion=False)
            app.command()(single[name])
            command = typer.main.get_command(app)
        used = {word for word in rest if word.startswith("--")}
        assert used <= options_of(command), (name, used)


def test_every_recipe_that_is_named_is_there() -> None:
    named = set(re.findall(r"training/recipes/[\w.-]+\.yaml", PAGE))
    assert named
    for path in named:
        load_recipe(ROOT / path)


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((\.[^)#]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
