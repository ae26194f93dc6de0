"""The manifest of a model version: its parts and its use.

A version is a folder ``<name>/`` with ``manifest.json``, safetensors and a model card
(``README.md``). It is immutable: :attr:`Manifest.digest` covers everything that can change an
answer, and cache keys hold it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    model_serializer,
    model_validator,
)

SPELLING_SCHEMA = 2
"""First manifest schema that may have ``spelling``."""
CATALOGUE_SCHEMA = 3
"""First manifest schema that may have ``catalogue``, and ``synonyms_file`` in ``spelling``."""
SCHEMA = CATALOGUE_SCHEMA
"""Newest manifest schema that this code reads."""

VersionName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Probability = Annotated[float, Field(ge=0.0, le=1.0)]


RECORD = "requery.json"
"""In a materialised folder: the version that it was made from, and its files."""
_OURS = frozenset({"manifest.json", RECORD})
_MAX_PATH_BYTES = 200


def _plain_relative(path: str) -> str:
    # Printable: no NUL, which file systems refuse, and no control characters for terminals.
    if not path.isprintable() or len(path.encode()) > _MAX_PATH_BYTES:
        raise ValueError(f"must be printable, and have at most {_MAX_PATH_BYTES} bytes")
    plain = PurePosixPath(path)
    inside = plain.parts and not plain.is_absolute() and ".." not in plain.parts
    if not inside or "\\" in path or plain.as_posix() != path:
        raise ValueError("must be a relative path inside the version's folder")
    return path


RelativePath = Annotated[str, AfterValidator(_plain_relative)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class BaseSpec(_Section):
    """The base model: its source and its digest."""

    source: str
    """``package:<distribution>/<file>`` (a GGUF file of an installed Python distribution),
    or the path or fsspec URL of a GGUF file or of a folder in the Hugging Face layout."""
    sha256: Sha256
    """Digest of the GGUF file; of a folder, the digest of its sorted ``sha256  name`` lines."""
    license: str


class WeightsSpec(_Section):
    """How the version's own weights relate to the base."""

    kind: Literal["adapter", "full"]
    """``adapter``: a PEFT LoRA folder, merged into the base when materialised;
    ``full``: a complete model in the Hugging Face layout."""


class PromptSpec(_Section):
    """Four tokens of the base's vocabulary that never occur in text, and the normal form."""

    query: str
    rewrite: str
    relevant: str
    irrelevant: str
    fold_case: bool = True


class DecodingSpec(_Section):
    """How candidates are drawn."""

    temperatures: Annotated[
        tuple[Annotated[float, Field(ge=0.0, le=2.0)], ...], Field(min_length=1, max_length=32)
    ]
    """One candidate each; 0 is greedy."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    max_tokens: Annotated[int, Field(ge=2, le=128)] = 24
    """Longest rewrite in tokens, its tag included."""


class FilterSpec(_Section):
    """Which candidates are good enough to answer with."""

    min_relevance: Probability = 0.5
    """Default threshold on P(relevant); a request may set its own."""
    max_rewrites: Annotated[int, Field(ge=1, le=32)] = 4
    """Default number of rewrites; a request may set its own."""
    keep_numbers: bool = True
    """Reject a rewrite that drops or changes a number, size or unit of the query."""
    drop_expansions: bool = False
    """Reject a rewrite that says the whole query and adds words that nobody asked for."""
    brands_file: RelativePath | None = None
    """A text file of the version, one normalised brand a line; the query's brand must survive."""


class SpellingSpec(_Section):
    """A spelling corrector, whose proposals the model tags and, if relevant, rewrites."""

    words_file: RelativePath
    """A text file of the version: a known word and its frequency in each line."""
    pairs_file: RelativePath | None = None
    """A text file of the version: two adjacent known words and their frequency in each line, from
    which neighbours choose among several likely words."""
    max_edits: Annotated[int, Field(ge=1, le=2)] = 2
    """Most edits between a mistyped word and its correction."""
    synonyms_file: RelativePath | None = None
    """A text file of the version: a term and other terms for it in each line, with tabs between;
    tagged and raised like corrections. Needs schema 3."""
    trust: Annotated[float, Field(ge=-10, le=10)] = 0.0
    """Natural log-odds added to the tag of a proposal, because proposals are right more often than
    the pairs in training."""


class CatalogueSpec(_Section):
    """The shop's catalogue, in which rewrites are looked up before they are answered."""

    index_file: RelativePath
    """A file of the version (``.index``): which words are in which title."""
    products: Annotated[int, Field(ge=1)]
    made_at: AwareDatetime
    """When it was taken from the shop. No part of the digest, because it changes no answer."""


class FileSpec(_Section):
    """Digest and size of one file of the version."""

    sha256: Sha256
    bytes: Annotated[int, Field(ge=0)]


class Manifest(_Section):
    """Everything about a version. ``training`` and ``evaluation`` are records for people."""

    schema_version: Annotated[int, Field(ge=1)] = 1
    name: VersionName
    description: str = ""
    base: BaseSpec
    weights: WeightsSpec
    prompt: PromptSpec
    decoding: DecodingSpec
    filter: FilterSpec = FilterSpec()
    spelling: SpellingSpec | None = None
    catalogue: CatalogueSpec | None = None
    files: dict[RelativePath, FileSpec]
    training: dict[str, Any] = {}
    evaluation: dict[str, Any] = {}

    @model_validator(mode="after")
    def _schema_of_synonyms(self) -> Self:
        if self.spelling and self.spelling.synonyms_file and self.schema_version < CATALOGUE_SCHEMA:
            raise ValueError(f"synonyms_file needs schema_version {CATALOGUE_SCHEMA}")
        return self

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.schema_version > SCHEMA:
            raise ValueError(
                f"schema {self.schema_version} is newer than this program reads ({SCHEMA}); "
                "upgrade requery"
            )
        if self.spelling is not None and self.schema_version < SPELLING_SCHEMA:
            raise ValueError(f"spelling needs schema_version {SPELLING_SCHEMA}")
        if self.catalogue is not None and self.schema_version < CATALOGUE_SCHEMA:
            raise ValueError(f"catalogue needs schema_version {CATALOGUE_SCHEMA}")
        if not any(name.endswith(".safetensors") for name in self.files):
            raise ValueError("lists no .safetensors file")
        allowed = {".safetensors", ".json", ".txt", ".md", ".index"}
        if reserved := _OURS & self.files.keys():
            raise ValueError(f"{min(reserved)!r}: this file is the store's own")
        for name in self.files:
            if PurePosixPath(name).suffix not in allowed:
                raise ValueError(f"{name!r}: only {sorted(allowed)} files may be part of a version")
        for field, file in self._named_files().items():
            if file is not None and file not in self.files:
                raise ValueError(f"{field} {file!r} is not listed under files")
        return self

    def _named_files(self) -> dict[str, str | None]:
        """Fields that name a file of the version."""
        named: dict[str, str | None] = {"brands_file": self.filter.brands_file}
        if self.spelling is not None:
            named["words_file"] = self.spelling.words_file
            named["pairs_file"] = self.spelling.pairs_file
            named["synonyms_file"] = self.spelling.synonyms_file
        if self.catalogue is not None:
            named["index_file"] = self.catalogue.index_file
        return named

    @model_serializer(mode="wrap")
    def _as_before(self, content: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out what older programs do not know where it says nothing; digests stay then."""
        fields: dict[str, Any] = content(self)
        for section in ("spelling", "catalogue"):
            if getattr(self, section) is None:
                fields.pop(section, None)
        if self.spelling is not None and self.spelling.synonyms_file is None:
            fields.get("spelling", {}).pop("synonyms_file", None)
        if "filter" in fields and not self.filter.drop_expansions:
            fields["filter"].pop("drop_expansions", None)
        return fields

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of everything that can change an answer, without records and prose."""
        parts = self.model_dump(
            mode="json", exclude={"name", "description", "training", "evaluation"}
        )
        parts.get("catalogue", {}).pop("made_at", None)
        parts["files"] = {k: v for k, v in parts["files"].items() if not k.endswith(".md")}
        canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()
