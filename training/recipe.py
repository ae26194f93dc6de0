"""Recipes: one YAML file holds everything that a run depends on."""

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
    """The source to read, and how many training pairs to build from it."""

    source: Literal["home_depot", "best_buy", "tables", "general"]
    """A reader of :mod:`training.data.readers`, or ``tables``: a folder in our schema.
    ``general`` is Home Depot with all departments beside it (:mod:`training.data.general`)."""
    queries: Annotated[int, Field(ge=1)] | None = None
    """Training queries to mine pairs of, drawn by chance; default: all."""
    noisy_pairs: Annotated[int, Field(ge=0)] = 0
    """Synthetic misspellings to add."""
    spelling_repeats: Annotated[int, Field(ge=1)] = 1
    """How often each query with a real misspelling is repeated: they are few, and gain most."""
    max_write: Annotated[int, Field(ge=1)] = 4
    max_judge: Annotated[int, Field(ge=0)] = 4


class AdapterPart(_Part):
    """LoRA on all projections; the four marker rows of the embedding are trained too."""

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
    """Weight of the two-label loss relative to the loss on rewrites."""


class DomainStage(_Part):
    """Language modelling on titles and queries."""

    kind: Literal["domain"]
    tokens: Annotated[int, Field(ge=1)]
    optimiser: Optimiser


class SftStage(_Part):
    """Multi-task supervised fine-tuning: write and judge."""

    kind: Literal["sft"]
    tokens: Annotated[int, Field(ge=1)]
    """Number of packed tokens; the data is repeated or cut to this size."""
    optimiser: Optimiser
    tasks: Literal["both", "write"] = "both"
    """``write`` is the single-task ablation."""
    match_samples: bool = True
    """Limit mined queries to the number of samples, and noisy ones to half of it."""
    noisy_pairs: Annotated[int, Field(ge=0)] | None = None
    """Synthetic misspellings in this stage; default: the recipe's ``noisy_pairs``."""
    catalogue_pairs: Annotated[int, Field(ge=0)] = 0
    """Queries whose pairs to judge come from the catalogue (``data/catalogue_pairs.py``)."""
    home_share: Annotated[float, Field(ge=0, le=0.5)] = 0.35
    """Of the source ``general``: share of tokens that Home Depot's mined pairs have."""


class SampleStage(_Part):
    """Rewrites that the model samples for training queries, judged by the search engine.

    The next ``sft`` stage learns the good ones and takes the bad ones as negatives.
    """

    kind: Literal["sample"]
    queries: Annotated[int, Field(ge=1)]
    per_query: Annotated[int, Field(ge=1)] = 8
    temperature: Annotated[float, Field(gt=0)] = 1.0


class _RewardedStage(_Part):
    """Common fields of the stages that learn from rewards of the search engine and the judge."""

    temperature: Annotated[float, Field(gt=0)]
    """Sampling temperature."""
    learning_rate: Annotated[float, Field(gt=0)]
    rewards: Annotated[dict[RewardName, float], Field(min_length=1)]
    """Weight of each reward (:mod:`training.rewards`); the default weight is 0."""
    results: Annotated[int, Field(ge=1)] = 5
    """Number of a rewrite's first results that the judge scores."""
    missed_share: Annotated[float, Field(ge=0, le=1)] = 0.75
    """Share of queries that miss some of their relevant products without a rewrite."""


class GrpoStage(_RewardedStage):
    """Alignment by GRPO on rewards of the search engine and the judge (``alignment/grpo.py``)."""

    kind: Literal["grpo"]
    steps: Annotated[int, Field(ge=1)]
    queries_per_step: Annotated[int, Field(ge=1)] = 8
    group: Annotated[int, Field(ge=2)] = 8
    """Samples for each query; their rewards are compared with each other."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    beta: Annotated[float, Field(ge=0)] = 0.02
    """Weight of the divergence from the model at the start of the stage."""
    misspelt_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of queries that are misspelt before sampling, with misspellings that people make."""
    tag_rows: Annotated[int, Field(ge=0)] = 1
    """Packed rows of pairs to judge that each step also learns."""
    tag_weight: Annotated[float, Field(ge=0)] = 1.0
    catalogue_pairs: Annotated[int, Field(ge=0)] = 0
    """Queries from the catalogue (:mod:`training.data.catalogue_pairs`) in those rows."""
    row_tokens: Annotated[int, Field(ge=32)] = 256


class DpoStage(_RewardedStage):
    """Preference optimisation on the model's own samples (:mod:`training.alignment.preference`)."""

    kind: Literal["dpo"]
    queries: Annotated[int, Field(ge=1)]
    per_query: Annotated[int, Field(ge=2)] = 8
    temperature: Annotated[float, Field(gt=0)] = 0.9
    min_margin: Annotated[float, Field(gt=0)] = 0.5
    """Minimum difference of fused rewards between a query's best and worst sample."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    anchor: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the loss on the best samples themselves."""
    batch: Annotated[int, Field(ge=1)] = 16
    """Pairs per step."""
    epochs: Annotated[int, Field(ge=1)] = 1


class TagsStage(_Part):
    """Refit and calibrate only the head's row of the tag (``finetuning/tag_head.py``)."""

    kind: Literal["tags"]
    queries: Annotated[int, Field(ge=1)] = 4000
    """Training queries whose pairs the row is fitted to; of ``general`` so many of each source."""
    ridge: Annotated[float, Field(gt=0)] = 0.01
    """Weight of the row's squared change relative to the mean loss of a pair."""


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
    """Version whose adapter the first stage starts from; base and prompt must be equal."""
    judge: Path | None = None
    """Folder of the judge (from ``requery judge``), for stages that need one."""
    stages: Annotated[tuple[Stage, ...], Field(min_length=1)]
    decoding: DecodingSpec
    filter: FilterSpec = FilterSpec()
    spelling: SpellingSpec | None = None
    """A corrector built from the words of the catalogue and of training queries."""
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    """What training computes in; ``auto`` times a step of each (``finetuning/precision.py``)."""
    label_words: dict[str, str] = {
        "query": " search",
        "rewrite": " product",
        "relevant": " good",
        "irrelevant": " wrong",
    }
    """Ordinary words whose embedding rows initialise the markers."""

    @field_validator("label_words")
    @classmethod
    def _one_word_each(cls, words: dict[str, str]) -> dict[str, str]:
        markers = set(PromptSpec.model_fields) - {"fold_case"}
        if set(words) != markers or not all(words.values()):
            raise ValueError(f"must give a word for each of {', '.join(sorted(markers))}")
        return words

    @field_validator("stages")
    @classmethod
    def _first_stage_trains(cls, stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        if stages[0].kind == "sample":
            raise ValueError("the first stage must train; there is no model to sample from yet")
        return stages

    @model_validator(mode="after")
    def _stages_have_a_model(self) -> Self:
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

    ``like: other.yaml`` (a path relative to the recipe) inherits every field that the recipe does
    not set itself.

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
    """The recipe's fields, with inherited ones."""
    if path.resolve() in seen:
        raise RecipeError(f"{path} inherits from itself; name another recipe as 'like'")
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

    Filter, temperatures, corrector and description of the version are left out: they may be chosen
    after training, on the development fold. So is the precision: a run may go on elsewhere.
    """
    # Sorted, because the order of a mapping in the file has no meaning.
    content = json.dumps(
        recipe.model_dump(
            mode="json",
            exclude={"description", "filter", "decoding", "judge", "spelling", "precision"},
        ),
        sort_keys=True,
    )
    return hashlib.sha256(f"{content}{recipe.decoding.max_tokens}".encode()).hexdigest()
