"""The types of the Java and TypeScript clients, from the OpenAPI document of a running service.

    python -m examples.generate java examples/java
    python -m examples.generate typescript examples/typescript

The second needs Node and ``npm ci`` in that folder, because openapi-typescript makes those types.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Collection, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

Schema = dict[str, Any]

JAVA_PATHS = ("/rewrite", "/relevance")
"""Without the batch, because Java has no plain type for the unions in it."""
TYPESCRIPT_PATHS = (*JAVA_PATHS, "/rewrite/batch")
_JAVA_TYPES = {"string": "String", "integer": "Integer", "number": "Double", "boolean": "Boolean"}
_JAVA_HEAD = """\
// Made by "python -m examples.generate java" from the OpenAPI document of Requery; do not edit.
import java.util.List;
import java.util.Map;

/** What Requery takes and returns. A field that may be absent is null. */
public final class Api {
    private Api() {}
"""


class Language(StrEnum):
    """What a client is written in."""

    JAVA = "java"
    TYPESCRIPT = "typescript"


def reduced(document: Schema, paths: Collection[str]) -> Schema:
    """The document with these paths alone, and the schemas that they reach."""
    schemas = document["components"]["schemas"]
    chosen = {path: document["paths"][path] for path in paths}
    reached: set[str] = set()
    todo: list[Any] = [chosen]
    while todo:
        new = set(_references(todo.pop())) - reached
        reached |= new
        todo += [schemas[name] for name in new]
    components = document["components"] | {"schemas": {n: schemas[n] for n in sorted(reached)}}
    return document | {"paths": chosen, "components": components}


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if "$ref" in part:
            yield part["$ref"].rpartition("/")[2]
        part = list(part.values())
    if isinstance(part, list):
        for one in part:
            yield from _references(one)


def java(document: Schema) -> str:
    """``Api.java``: one record for each schema.

    Raises:
        ValueError: a field has a type that has no plain one in Java.
    """
    schemas = reduced(document, JAVA_PATHS)["components"]["schemas"]
    return _JAVA_HEAD + "".join(_record(name, one) for name, one in schemas.items()) + "}\n"


def _record(name: str, schema: Schema) -> str:
    fields = {_camel(one): _java(field) for one, field in schema["properties"].items()}
    declared = ",\n".join(f"        {kind} {field}" for field, kind in fields.items())
    required = [_camel(one) for one in schema.get("required", ())]
    lines = ["", f"    /** {schema['description'].replace('``', '')} */"]
    lines += [f"    public record {name}(", f"{declared}) {{"]
    # Only requests, which a caller makes, refuse further fields.
    if schema.get("additionalProperties") is False and len(required) < len(fields):
        given = ", ".join(f"{fields[one]} {one}" for one in required)
        values = ", ".join(one if one in required else "null" for one in fields)
        lines += [f"        public {name}({given}) {{", f"            this({values});", "        }"]
    return "\n".join([*lines, "    }", ""])


def _camel(name: str) -> str:
    return re.sub(r"_(\w)", lambda found: found[1].upper(), name)


def _java(schema: Schema) -> str:
    kinds = [one for one in schema.get("anyOf", [schema]) if one.get("type") != "null"]
    if len(kinds) != 1:
        raise ValueError(f"there is no plain Java type for {schema}")
    (kind,) = kinds
    match kind.get("type"):
        case "array":
            return f"List<{_java(kind['items'])}>"
        case "object":
            return f"Map<String, {_java(kind['additionalProperties'])}>"
        case plain if plain in _JAVA_TYPES:
            return _JAVA_TYPES[plain]
    if "$ref" not in kind:
        raise ValueError(f"there is no plain Java type for {schema}")
    return next(_references(kind))


def typescript(document: Schema, tools: Path) -> str:
    """``api.ts``, by the openapi-typescript of a folder.

    Raises:
        OSError, subprocess.CalledProcessError: the tool is missing, or failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        source, made = Path(folder, "openapi.json"), Path(folder, "api.ts")
        source.write_text(json.dumps(reduced(document, TYPESCRIPT_PATHS)), encoding="utf-8")
        command = [
            str(tools / "node_modules/.bin/openapi-typescript"),
            str(source),
            "-o",
            str(made),
        ]
        options = ["--root-types", "--root-types-no-schema-prefix"]
        options += ["--default-non-nullable", "false", "--alphabetize"]
        subprocess.run([*command, *options], check=True, capture_output=True)  # noqa: S603
        return made.read_text(encoding="utf-8")


def main(
    language: Language,
    folder: Path,
    url: Annotated[str, typer.Option(help="Where the service answers.")] = "http://localhost:8000",
) -> None:
    """Write the types of a client into its folder."""
    document = httpx.get(f"{url}/openapi.json").raise_for_status().json()
    if language is Language.JAVA:
        (folder / "Api.java").write_text(java(document), encoding="utf-8")
    else:
        (folder / "api.ts").write_text(typescript(document, folder), encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
