"""Why a part of the worker's extension is left out."""

from __future__ import annotations


class NotApplicable(Exception):
    """The part is not made for this model, device or option; the message says why."""


class LayoutChanged(Exception):
    """vLLM is laid out otherwise than the part expects, or gives other numbers."""
