"""YAML that holds plain values, and one kind of error for whatever is wrong with it."""

from __future__ import annotations

from typing import Any

import yaml

# The loader in C is some ten times as fast, and like the other makes plain values only.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def load(content: bytes) -> Any:
    """The one document in ``content``.

    Raises:
        yaml.YAMLError: it is malformed; a ``MarkedYAMLError`` knows where.
    """
    try:
        return yaml.load(content, Loader=_LOADER)  # noqa: S506 - a safe loader
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        # What PyYAML runs into at "!!int x", a date that there is none of, or very deep nesting.
        raise yaml.YAMLError(f"a value cannot be read ({error})") from error
