"""A run's folder on disk: what is done, and for which recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from training.errors import RunError
from training.recipe import Recipe, recipe_digest


class Run:
    """A run's folder: ``recipe.json``, ``figures.jsonl``, ``stage-N/`` and ``adapter/`` at the end.

    A recipe that gained stages at its end goes on where the shorter one ended.

    Raises:
        RunError: the folder belongs to another recipe.
    """

    def __init__(self, folder: Path, recipe: Recipe) -> None:
        self.folder, self.recipe = folder, recipe
        folder.mkdir(parents=True, exist_ok=True)
        marker = folder / "recipe.json"
        digest = recipe_digest(recipe)
        if marker.is_file() and not _goes_on(marker, recipe):
            raise RunError(
                f"{folder} holds a run of another recipe, or of this one before it was changed; "
                "choose another --run folder or remove it"
            )
        write_json(marker, {"digest": digest, "recipe": recipe.model_dump(mode="json")})

    def done(self, stage: int) -> dict[str, Any] | None:
        """The record of a finished stage."""
        path = self.folder / f"stage-{stage}.json"
        record: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
        return record

    def finish(self, stage: int, record: dict[str, Any]) -> None:
        """Mark a stage as finished."""
        write_json(self.folder / f"stage-{stage}.json", record)


def _goes_on(marker: Path, recipe: Recipe) -> bool:
    """Whether ``recipe`` is the one that a run began with, or that one and more stages.

    The file's content is digested again rather than its digest compared: a newer release may
    count other fields than the one that wrote it.
    """
    try:
        begun = Recipe.model_validate(json.loads(marker.read_text())["recipe"])
    except (ValueError, KeyError, TypeError):
        return False
    same = recipe.model_copy(update={"stages": recipe.stages[: len(begun.stages)]})
    return recipe_digest(begun) == recipe_digest(same)


def write_json(path: Path, document: Any) -> None:
    """Write a JSON file whole or not at all; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    partial.replace(path)
