"""Manifests of versions that exist only in tests."""

from __future__ import annotations

from typing import Any

from model_store.manifest import Manifest


def make_manifest(name: str = "test-1", **changes: Any) -> Manifest:
    """A valid manifest; ``changes`` replace whole sections."""
    content: dict[str, Any] = {
        "name": name,
        "description": "scripted",
        "base": {"source": "package:none/none.gguf", "sha256": "0" * 64, "license": "Apache-2.0"},
        "weights": {"kind": "adapter"},
        "prompt": {"query": "<q>", "rewrite": "<r>", "relevant": "<y>", "irrelevant": "<n>"},
        "decoding": {"temperatures": [0.0, 0.8, 0.8, 0.8]},
        "files": {"adapter.safetensors": {"sha256": "1" * 64, "bytes": 1}},
    }
    return Manifest.model_validate(content | changes)
