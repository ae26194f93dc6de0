"""``docs/settings.md``, made from the settings: ``python -m service.config.page``."""

from __future__ import annotations

import sys
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from service.config.settings import Settings

_HEAD = """\
# Settings

Every option of `requery serve`; `requery precompute` reads the same. This page is made from
[service/config/settings.py](../service/config/settings.py) by `python -m service.config.page`.
An empty setting counts as not set. An invalid one ends the start with one line that names it.
Service links of Kubernetes (`REQUERY_PORT=tcp://10.0.0.1:80`) are ignored, with a note in the log.
After the name: the default, if there is one; in brackets: type or unit, bounds.

"""
_UNITS = {"_per_s": "requests/s", "_ms": "milliseconds", "_bytes": "bytes", "_s": "seconds"}
"""By how a name ends; the first that fits."""
_TYPES: dict[Any, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "text",
    Path: "path",
    SecretStr: "secret",
}
_BOUNDS = {
    "ge": "≥{}",
    "gt": ">{}",
    "le": "≤{}",
    "lt": "<{}",
    "min_length": "≥{} characters",
}
"""By the attribute in which pydantic keeps a bound."""


def page() -> str:
    """The page, in Markdown."""
    prefix = str(Settings.model_config.get("env_prefix"))
    rows = (
        f"- `{prefix}{name.upper()}`{_default(field)} ({_type(name, field)}): {field.description}\n"
        for name, field in Settings.model_fields.items()
    )
    return _HEAD + "".join(rows)


def _type(name: str, field: FieldInfo) -> str:
    kinds = [_name(kind) for kind in _kinds(field.annotation)]
    bounds = [
        words.format(getattr(one, attribute))
        for one in field.metadata
        for attribute, words in _BOUNDS.items()
        if getattr(one, attribute, None) is not None
    ]
    unit = next((unit for end, unit in _UNITS.items() if name.endswith(end)), None)
    return ", ".join([unit or " or ".join(kinds), *bounds])


def _kinds(annotation: Any) -> list[Any]:
    """The alternatives of an annotation, without ``None``."""
    if get_origin(annotation) in (Union, UnionType):
        return [kind for kind in get_args(annotation) if kind is not NoneType]
    return [annotation]


def _name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(kind))
    return _TYPES[kind]


def _default(field: FieldInfo) -> str:
    value = field.default
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        value = str(value).lower()
    return f" = `{value}`"


if __name__ == "__main__":
    sys.stdout.write(page())
