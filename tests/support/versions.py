"""Manifests of versions that exist only in tests, and their engines."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from model_store.manifest import Manifest
from service.engine.protocol import Engine
from service.errors import EngineUnavailable
from service.versions.state import State
from service.versions.version import ModelVersion, OnTokens
from tests.support.engine import ScriptedEngine


def make_manifest(name: str = "test-1", **changes: Any) -> Manifest:
    """A valid manifest; ``changes`` replace whole sections."""
    content: dict[str, Any] = {
        "name": name,
        "description": "scripted",
        "base": {"source": "package:none/none.gguf", "sha256": "0" * 64, "license": "Apache-2.0"},
        "weights": {"kind": "adapter"},
        "prompt": {"query": "<q>", "rewrite": "<r>", "relevant": "<y>", "irrelevant": "<n>"},
        "decoding": {"temperatures": [0.0, 0.8, 0.8, 0.8]},
        # Weights of its own, so that each has a digest, and with it cache keys, of its own.
        "files": {"adapter.safetensors": {"sha256": sha256(name.encode()).hexdigest(), "bytes": 1}},
    }
    return Manifest.model_validate(content | changes)


def put_in(version: ModelVersion, state: State) -> None:
    """Bring a version into ``state``, without an engine, by transitions that are allowed."""
    version.reset()
    steps = (State.LOADING, State.WARMING, State.READY, State.DRAINING)
    if state in steps:
        for step in steps[: steps.index(state) + 1]:
            version._enter(step)
    elif state is State.FAILED:
        version.fail(EngineUnavailable("no device"))


class Engines:
    """A factory (``service.versions.version.EngineFactory``) of scripted engines, one for each
    load.

    Without being told otherwise, an engine's rewrites name its version.

    Args:
        given: engines to hand out first, by name of the version.
    """

    def __init__(self, **given: ScriptedEngine) -> None:
        self._given = {name.replace("_", "-"): engine for name, engine in given.items()}
        self.made: dict[str, list[ScriptedEngine]] = {}
        """Engines handed out, by name of the version, the latest last."""

    def give(self, name: str, engine: ScriptedEngine) -> ScriptedEngine:
        """Hand ``engine`` out at the next load of the version ``name``."""
        self._given[name] = engine
        return engine

    def __getitem__(self, name: str) -> ScriptedEngine:
        """The latest engine of a version."""
        return self.made[name][-1]

    def count(self, name: str) -> int:
        """How many engines of a version have been made."""
        return len(self.made.get(name, ()))

    @property
    def running(self) -> list[str]:
        """Names of versions with an engine that has not been closed, once for each."""
        return sorted(n for n, made in self.made.items() for e in made if not e.closed)

    async def __call__(self, manifest: Manifest, on_tokens: OnTokens) -> Engine:
        name = manifest.name
        engine = self._given.pop(name, None)
        if engine is None:
            # Without its number, which no query asks for.
            kind = name.partition("-")[0]
            engine = ScriptedEngine(default=((f"{kind} stake", 0.98), (f"{kind} post", 0.9)))
        engine.on_tokens = on_tokens
        self.made.setdefault(name, []).append(engine)
        return engine
