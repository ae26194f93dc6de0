"""Recipes: one YAML file says all that a run depends on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from model_store.manifest import (
    BaseSpec,
    DecodingSpec,
    FilterSpec,
    PromptSpec,
    SpellingSpec,
    VersionName,
)
from training.errors import RecipeError
from training.rewards import RewardName


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataPart(_Part):
    """Which source to read and how much to make of it."""

    source: Literal["home_depot", "best_buy", "tables"]
    """A reader of :mod:`training.data.readers`, or ``tables``: a folder in our schema."""
    noisy_pairs: Annotated[int, Field(ge=0)] = 0
    """Synthetic misspellings to add."""
    spelling_repeats: Annotated[int, Field(ge=1)] = 1
    """How often a query comes that people misspelt; they are few, and gain most."""
    max_write: Annotated[int, Field(ge=1)] = 4
    max_judge: Annotated[int, Field(ge=0)] = 4


class AdapterPart(_Part):
    """LoRA on all projections, with the four marker rows trained beside it."""

    rank: Annotated[int, Field(ge=1)] = 16
    alpha: Annotated[int, Field(ge=1)] = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Optimiser(_Part):
    """AdamW with linear warm-up and decay."""

    learning_rate: Annotated[float, Field(gt=0)]
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.03
    rows: Annotated[int, Field(ge=1)] = 4
    """Packed rows per optimiser step."""
    row_tokens: Annotated[int, Field(ge=32)] = 256
    tag_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the two-label loss beside the loss on rewrites."""


class DomainStage(_Part):
    """Language modelling on titles and queries."""

    kind: Literal["domain"]
    tokens: Annotated[int, Field(ge=1)]
    optimiser: Optimiser


class SftStage(_Part):
    """Multi-task supervised fine-tuning: write and judge."""

    kind: Literal["sft"]
    tokens: Annotated[int, Field(ge=1)]
    """Budget of packed tokens; the data is repeated or cut to fit."""
    optimiser: Optimiser
    tasks: Literal["both", "write"] = "both"
    """``write`` is the single-task ablation."""
    match_samples: bool = True
    """Beside samples, take only as many mined queries, and half as many noisy ones."""
    noisy_pairs: Annotated[int, Field(ge=0)] | None = None
    """Synthetic misspellings in this stage; default: as many as the recipe makes."""
    catalogue_pairs: Annotated[int, Field(ge=0)] = 0
    """Queries with pairs to judge out of the catalogue alone (``data/catalogue_pairs.py``)."""


class SampleStage(_Part):
    """The model's own rewrites of training queries, judged by the search engine.

    The good ones are learnt and the bad ones become negatives in the next ``sft`` stage.
    """

    kind: Literal["sample"]
    queries: Annotated[int, Field(ge=1)]
    per_query: Annotated[int, Field(ge=1)] = 8
    temperature: Annotated[float, Field(gt=0)] = 1.0


class _RewardedStage(_Part):
    """What stages have in common that learn from what the search engine and the judge give back."""

    temperature: Annotated[float, Field(gt=0)]
    """Of sampling."""
    learning_rate: Annotated[float, Field(gt=0)]
    rewards: Annotated[dict[RewardName, float], Field(min_length=1)]
    """Weight of each reward (:mod:`training.rewards`); one that is not named does not count."""
    results: Annotated[int, Field(ge=1)] = 5
    """First results of a rewrite that the judge looks at."""
    missed_share: Annotated[float, Field(ge=0, le=1)] = 0.75
    """Share of queries that do not find all of their relevant products by themselves."""


class GrpoStage(_RewardedStage):
    """Alignment on what the search engine and the judge give back (``alignment/grpo.py``)."""

    kind: Literal["grpo"]
    steps: Annotated[int, Field(ge=1)]
    queries_per_step: Annotated[int, Field(ge=1)] = 8
    group: Annotated[int, Field(ge=2)] = 8
    """Samples for each query, compared with each other."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    beta: Annotated[float, Field(ge=0)] = 0.02
    """Weight of the divergence from the model that the stage began with."""
    misspelt_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of queries that are misspelt on the way, as people misspell: their corrections gain."""
    tag_rows: Annotated[int, Field(ge=0)] = 1
    """Packed rows of pairs to judge, learnt beside in each step."""
    tag_weight: Annotated[float, Field(ge=0)] = 1.0
    catalogue_pairs: Annotated[int, Field(ge=0)] = 0
    """Queries out of the catalogue (:mod:`training.data.catalogue_pairs`) among those rows."""
    row_tokens: Annotated[int, Field(ge=32)] = 256


class DpoStage(_RewardedStage):
    """Preference optimisation on the model's own samples (:mod:`training.alignment.preference`)."""

    kind: Literal["dpo"]
    queries: Annotated[int, Field(ge=1)]
    per_query: Annotated[int, Field(ge=2)] = 8
    temperature: Annotated[float, Field(gt=0)] = 0.9
    min_margin: Annotated[float, Field(gt=0)] = 0.5
    """Least difference of fused rewards between the best and the worst sample of a query."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    anchor: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the loss on the best samples themselves."""
    batch: Annotated[int, Field(ge=1)] = 16
    """Pairs in a step."""
    epochs: Annotated[int, Field(ge=1)] = 1


class TagsStage(_Part):
    """The tag's row of the head alone, fitted again and calibrated (``finetuning/tag_head.py``)."""

    kind: Literal["tags"]
    queries: Annotated[int, Field(ge=1)] = 4000
    """Training queries whose pairs the row is fitted to."""
    ridge: Annotated[float, Field(gt=0)] = 0.01
    """Weight of the squared change of the row beside the mean loss of a pair."""


Stage = Annotated[
    DomainStage | SftStage | SampleStage | GrpoStage | DpoStage | TagsStage,
    Field(discriminator="kind"),
]


class Recipe(_Part):
    """A whole run, from base to version."""

    name: VersionName
    description: str
    base: BaseSpec
    seed: int = 7
    data: DataPart
    prompt: PromptSpec
    adapter: AdapterPart = AdapterPart()
    start: VersionName | None = None
    """Version whose adapter the first stage goes on from; its base and prompt must be the same."""
    judge: Path | None = None
    """Folder of the judge (``requery judge`` makes it), for stages that need one."""
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    decoding: DecodingSpec
    filter: FilterSpec = FilterSpec()
    spelling: SpellingSpec | None = None
    """A corrector made of the words of the catalogue and of training queries."""
    label_words: dict[str, str] = {
        "query": " search",
        "rewrite": " product",
        "relevant": " good",
        "irrelevant": " wrong",
    }
    """Ordinary words whose embedding rows the markers start from."""

    @field_validator("label_words")
    @classmethod
    def _one_word_each(cls, words: dict[str, str]) -> dict[str, str]:
        markers = set(PromptSpec.model_fields) - {"fold_case"}
        if set(words) != markers or not all(words.values()):
            raise ValueError(f"must give a word for each of {', '.join(sorted(markers))}")
        return words

    @field_validator("stages")
    @classmethod
    def _something_to_sample_from(cls, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        if stages[0].kind == "sample":
            raise ValueError("the first stage must train; there is no model to sample from yet")
        return stages

    @model_validator(mode="after")
    def _something_to_align(self) -> Self:
        if self.stages[0].kind == "tags" and self.start is None:
            raise ValueError("a tags stage needs a model that can judge: name one as 'start'")
        for index, stage in enumerate(self.stages):
            if not isinstance(stage, GrpoStage | DpoStage):
                continue
            if index == 0 and self.start is None:
                raise ValueError(
                    f"a {stage.kind} stage needs a model that can write: name one as 'start'"
                )
            if self.judge is None and stage.rewards.keys() & {"relevance", "agreement"}:
                raise ValueError("the rewards relevance and agreement need a 'judge'")
        return self


def load_recipe(path: Path) -> Recipe:
    """Read and check a recipe.

    ``like: other.yaml`` (a path from the recipe's folder) takes over every field of another one
    that the recipe does not name itself.

    Raises:
        RecipeError: unreadable, not YAML, or not in the shape of :class:`Recipe`.
    """
    try:
        return Recipe.model_validate(_document(path, seen=()))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(p) for p in first["loc"]) or "document"
        raise RecipeError(f"{path}: {where}: {first['msg']}") from error


def _document(path: Path, seen: tuple[Path, ...]) -> Any:
    """What a recipe says, with what it takes over."""
    if path.resolve() in seen:
        raise RecipeError(f"{path} is like itself; name another recipe as 'like'")
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RecipeError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path} is not YAML: {error}") from error
    if not isinstance(document, dict) or "like" not in document:
        return document
    own = {name: value for name, value in document.items() if name != "like"}
    model = _document(path.parent / str(document["like"]), (*seen, path.resolve()))
    return {**model, **own} if isinstance(model, dict) else own


def recipe_digest(recipe: Recipe) -> str:
    """SHA-256 (hex) of what training depends on; a run continues only with the same one.

    How the finished version is used (its filter, temperatures, corrector and description) may be
    chosen after training, on the development fold.
    """
    # Sorted, since the order of a mapping in the file says nothing.
    content = json.dumps(
        recipe.model_dump(
            mode="json", exclude={"description", "filter", "decoding", "judge", "spelling"}
        ),
        sort_keys=True,
    )
    return hashlib.sha256(f"{content}{recipe.decoding.max_tokens}".encode()).hexdigest()
